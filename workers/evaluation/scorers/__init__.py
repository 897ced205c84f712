"""One scorer per format. All take the same token ids and give logits as NumPy arrays."""

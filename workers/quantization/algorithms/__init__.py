"""The arithmetic of methods as pure functions of tensors."""

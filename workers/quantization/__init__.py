"""How each quantization method works. What it is, is in `app.domain.quantization`."""

"""What each quantization method is: its name, parameters and needs. How it works lives in `workers`."""

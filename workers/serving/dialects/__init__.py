"""What engines' servers do differently from the contract, made good between the host and the engine."""

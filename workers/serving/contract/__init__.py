"""One contract for every engine: requests as OpenAI's API defines them, and what each engine makes of them."""

"""Rules and values of the business: standard library and pydantic only."""

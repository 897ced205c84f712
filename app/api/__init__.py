"""HTTP: routers, authentication, and the one table from errors to statuses."""

"""A comparison as a file: CSV, Markdown, or one page of HTML that needs nothing beside itself."""

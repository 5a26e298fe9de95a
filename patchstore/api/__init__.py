"""The HTTP service: the same questions and answers as the SQL functions, and the page."""

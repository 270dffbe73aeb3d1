"""What serves the model to people and programs: the web page and the HTTP API."""

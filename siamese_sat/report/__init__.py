"""Tables, pictures and the page that a person reads."""

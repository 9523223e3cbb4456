"""A client of NBD servers, which are not trusted."""

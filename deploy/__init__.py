"""deploy lets the world in: command line, HTTP, web page, jobs, cluster files."""

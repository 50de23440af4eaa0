"""What the program costs. Each module measures one thing and ends in one JSON line; `make bench` runs most of them."""

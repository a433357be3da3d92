"""What server and hospitals must agree on; knows neither Flower nor either side."""

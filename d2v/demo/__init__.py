"""The embedded data sets, made on the spot from what is installed; only recipes import them."""

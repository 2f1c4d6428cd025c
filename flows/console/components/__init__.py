"""Define the components that pages share."""

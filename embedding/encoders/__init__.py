"""Load models and encode texts and images as unit vectors."""

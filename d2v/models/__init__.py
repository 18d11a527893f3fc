"""Models: configurations, the shared encoder, a front end and heads for each modality."""

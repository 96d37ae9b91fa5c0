"""What a person or a file gets to see of a job."""

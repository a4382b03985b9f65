"""The comparing page: which of two pictures is better, said by people who do not know whose."""

"""A month in a minute: the real lifecycle in virtual time, with traffic, faults and crashes."""

"""A provider that exists in one test only: the smallest folder that is one."""

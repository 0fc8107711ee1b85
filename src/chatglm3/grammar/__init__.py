"""What an answer must be (`choices=`, `json_schema=`) as constraints on token ids."""

"""Who may do what: roles, bearer tokens, and consent to what touches a machine."""

"""Who takes part, on the server's side: enrolment, certificates, the roster and who is admitted to the SuperLink."""

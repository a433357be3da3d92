"""Who is who in a consortium: certificates, invitations, enrolment, the member list and revocation."""

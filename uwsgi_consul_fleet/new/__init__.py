"""`uwsgi-consul-fleet new`: a folder that an operator owns and edits."""

consul_servers = ["drakar"]
app_servers = ["drakar", "cheetah", "ormen", ("skuld", {"uwsgi_source": "pypi"})]
builders = []
retired = []

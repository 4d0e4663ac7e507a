# Prints what this host's uWSGI is, and for which one its plugin was compiled:
#   plugin FINGERPRINT      `another's` where it was not built by build-plugin
# Standard input names the uWSGI ('' for the one on the PATH) and the application.
read -r wanted
read -r app
identify_uwsgi "$wanted"
plugin=/srv/$app/current/consul_plugin.so
if [ -e "$plugin" ]; then echo "plugin $(plugin_mark "$plugin" || echo "another's")"; fi

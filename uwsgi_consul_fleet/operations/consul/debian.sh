# Fetches the consul binary out of Debian's own package; usage: debian.sh DESTINATION
#
# Debian 11 was the last release with a consul package. Its archive is on the mirror
# that apt already uses here, signed with keys that apt already trusts; the binary
# runs on later releases too. apt gets a source list and caches of its own, so that
# nothing of Debian 11 can be installed by accident.
set -eu
destination=$1
export LC_ALL=C

mirror=$(apt-get indextargets --format '$(REPO_URI) $(COMPONENT) $(LABEL)' 'Created-By: Packages' |
    sed -n 's/ main Debian$//p' | head -n 1)
if [ -z "$mirror" ]; then
    echo "no Debian mirror among apt's sources on $(hostname): set consul_source to release or file" >&2
    exit 1
fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir "$scratch/lists" "$scratch/package"
echo "deb $mirror bullseye main" >"$scratch/sources.list"
cat >"$scratch/apt.conf" <<CONF
Dir::Etc::SourceList "$scratch/sources.list";
Dir::Etc::SourceParts "-";
Dir::State::Lists "$scratch/lists";
Dir::Cache::PkgCache "";
Dir::Cache::SrcPkgCache "";
Acquire::Languages "none";
Acquire::Check-Valid-Until "false";
APT::Sandbox::User "root";
CONF
export APT_CONFIG="$scratch/apt.conf"
cd "$scratch"
apt-get -qq update >&2
apt-get -qq download consul >&2
dpkg-deb --extract consul_*.deb package
install -D -m 755 package/usr/bin/consul "$destination"

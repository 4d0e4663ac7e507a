# Fetches the consul binary out of Debian's own package; usage: debian.sh DESTINATION
#
# Debian 11 was the last release with a consul package. Its archive is on the mirror
# that apt already uses here; the binary runs on later releases too.
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
cd "$scratch"

# What the signed package lists of Debian 11 say of it, which no longer changes: to read them takes
# most of the seconds that a first deploy has for Consul.
package=consul_1.8.7+dfsg1-2+b3_$(dpkg --print-architecture).deb
case $package in
    *_amd64.deb) digest=e4e888bba104daba1d9161f49bfc52649a7e4efd45b1a7ead5bc54f2cb9c89d9 ;;
    *_arm64.deb) digest=7318cfa77a7ba6f71dd096e44353279de246ffc6561216ace42353685dcf8255 ;;
    *_armhf.deb) digest=1d8cbbfaa0ccf1899992282347a8d4e575b4fe12f8c2917724fc3705ac092bae ;;
    *_i386.deb) digest=f621d9c15ee18bf7f5f4cb76d370ecc90777f4f14b53743c8d7f58e12edd2fa3 ;;
    *) digest= ;;
esac
known() {
    [ -n "$digest" ] && /usr/lib/apt/apt-helper -qq -o APT::Sandbox::User=root \
        download-file "${mirror%/}/pool/main/c/consul/$package" "$package" "SHA256:$digest" >apt.log 2>&1
}

# From a mirror that has another one: apt looks it up, with keys that it already trusts. It gets a
# source list and caches of its own, so that nothing of Debian 11 can be installed by accident.
look_up() {
    rm -f ./*.deb*
    mkdir lists
    echo "deb $mirror bullseye main" >sources.list
    cat >apt.conf <<CONF
Dir::Etc::SourceList "$scratch/sources.list";
Dir::Etc::SourceParts "-";
Dir::State::Lists "$scratch/lists";
Dir::Cache::PkgCache "";
Dir::Cache::SrcPkgCache "";
Acquire::Languages "none";
Acquire::Check-Valid-Until "false";
APT::Sandbox::User "root";
CONF
    APT_CONFIG=$scratch/apt.conf apt-get -qq update >&2
    APT_CONFIG=$scratch/apt.conf apt-get -qq download consul >&2
}

known || look_up
dpkg-deb --extract consul_*.deb package
install -D -m 755 package/usr/bin/consul "$destination"

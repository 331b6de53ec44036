# Shared by the scripts in this folder: what they need on a Debian machine,
# and a build of this tree.  To be sourced.
#
# Everything happens in a copy of the tree under a temporary directory, as
# user postgres (PostgreSQL refuses to run as root); only installing packages
# and the built extension needs root.  PG_MAJOR chooses another server version
# than the distribution's own, where its packages are to be had.

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { printf '\n== %s\n' "$*"; }

as_root() {
	if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# runs a command as user postgres, in the copy of the tree
as_postgres() {
	(cd "$work/tree" &&
		if [ "$(id -un)" = postgres ]; then
			env PATH="$pg_bin:$PATH" HOME="$work" "$@"
		else
			as_root runuser -u postgres -- \
				env PATH="$pg_bin:$PATH" HOME="$work" "$@"
		fi)
}

install_packages() {
	local packages missing=() p log

	export DEBIAN_FRONTEND=noninteractive
	if [ -z "${PG_MAJOR:-}" ]; then
		apt-cache show postgresql >/dev/null 2>&1 || as_root apt-get update -qq
		PG_MAJOR=$(apt-cache show postgresql |
			sed -n 's/^Version: \([0-9][0-9]*\).*/\1/p' | head -n 1)
	fi
	packages="postgresql-$PG_MAJOR postgresql-server-dev-$PG_MAJOR
		gcc make perl libipc-run-perl $*"
	for p in $packages; do
		dpkg-query -W -f '${Status}' "$p" 2>/dev/null |
			grep -q 'install ok installed' || missing+=("$p")
	done
	if [ ${#missing[@]} -gt 0 ]; then
		say "installing ${missing[*]}"
		as_root apt-get update -qq
		log=$(mktemp)
		as_root apt-get install -y -qq --no-install-recommends \
			"${missing[@]}" >"$log" 2>&1 || { cat "$log"; exit 1; }
		rm -f "$log"
	fi
	pg_bin=/usr/lib/postgresql/$PG_MAJOR/bin
}

make_work_directory() {
	work=$(mktemp -d "${TMPDIR:-/tmp}/pyreplica.XXXXXX")
	mkdir "$work/tree"
	(cd "$top" && tar cf - --exclude=.git --exclude=tmp_check .) |
		tar xf - -C "$work/tree"
	as_root chown -R postgres: "$work"
	as_root chmod 755 "$work"
}

build_and_install() {
	say "building pyreplica for PostgreSQL $PG_MAJOR"
	as_postgres make -s clean PG_CONFIG="$pg_bin/pg_config" >/dev/null
	as_postgres make -s PG_CONFIG="$pg_bin/pg_config" PROFILE="${PROFILE:-}"
	as_root make -s -C "$work/tree" install PG_CONFIG="$pg_bin/pg_config" >/dev/null
}

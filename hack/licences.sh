#!/usr/bin/env bash
# Checks the licence and the name of every dependency against deny.toml, with nothing but cargo: the part of
# `cargo deny check` that protects the project where cargo-deny is not installed. Prints what breaks a rule.
set -euo pipefail
cd "$(dirname "$0")/.."

# list KEY: the quoted strings of the array KEY of deny.toml, comments left out.
list() {
  sed -n "/^$1 = \[/,/^\]/p" deny.toml | sed 's/#.*//' | grep -o '"[^"]*"' | tr -d '"'
}
allowed=$(list allow)
banned=$(list deny)
[ -n "$allowed" ] && [ -n "$banned" ] || { echo "licences: deny.toml has no 'allow' or no 'deny' list" >&2; exit 1; }

tree=$(cargo tree --locked --workspace --all-features --edges normal,build,dev --prefix none --format '{p}|{l}' |
  sed 's/ (\*)$//' | grep -v -e '^$' -e " ($PWD/" | sort -u)

# Each expression becomes an arithmetic one: 1 for an allowed licence, 0 for another ("/" is an old spelling of OR).
bad=0
while IFS='|' read -r package licence; do
  if grep -qx -- "${package%% *}" <<<"$banned"; then
    echo "licences: $package is banned by deny.toml (cargo tree -i ${package%% *} shows who wants it)" >&2
    bad=1
  fi
  value=$(
    sed 's| WITH |+WITH+|g; s|/| OR |g; s|[()]| & |g' <<<"$licence" | tr -s ' ' '\n' | while read -r word; do
      case $word in
        '') ;;
        OR) printf '||' ;;
        AND) printf '&&' ;;
        '(' | ')') printf '%s' "$word" ;;
        *) grep -qxF -- "${word//+WITH+/ WITH }" <<<"$allowed" && printf 1 || printf 0 ;;
      esac
    done
  )
  if [ -z "$value" ] || [ "$((value))" -ne 1 ]; then
    echo "licences: $package has the licence '$licence', which deny.toml does not allow" >&2
    bad=1
  fi
done <<<"$tree"
[ "$bad" -eq 0 ] && echo "licences: $(wc -l <<<"$tree") dependencies, all permissive, none banned" >&2
exit "$bad"

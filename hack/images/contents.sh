# Reading the files *.contents: lines of a key and a value. Sourced.
# shellcheck shell=bash

# The release of Debian that images are made of; the Dockerfile says the same.
# shellcheck disable=SC2034
DEBIAN=bookworm

# values FILE KEY: all values of a key, in the order of the file.
values() { sed -n "s/^$2  *//p" "$1"; }

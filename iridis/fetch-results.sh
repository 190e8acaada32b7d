#!/usr/bin/env bash
# Copies results from the cluster to this machine: experiment folders and run folders. Run at home; calling it again goes on.
#   bash iridis/fetch-results.sh HOST                        # without checkpoints
#   bash iridis/fetch-results.sh HOST --checkpoints          # *.pt too, and those set aside
#   bash iridis/fetch-results.sh HOST --dry-run [--to DIR] [--from REMOTE_REPO]
# HOST is what ssh takes. REMOTE_REPO is the clone there, from the home folder there; default: this clone's name.
# DIR defaults to $SCRATCH_DIR/fetched/HOST. Nothing is ever deleted here.
LIBRARY="$(dirname "$(readlink -f "$0")")/lib.sh"
[ -f "$LIBRARY" ] && [ -n "$BASH_VERSION" ] || { echo "error: call it by bash, from a clone: bash iridis/fetch-results.sh" >&2; exit 2; }
# shellcheck source=iridis/lib.sh
. "$LIBRARY"

USAGE="usage: bash iridis/fetch-results.sh HOST [--checkpoints] [--dry-run] [--to DIR] [--from REMOTE_REPO]"

# ask_host HOST REMOTE_REPO: print the folders to fetch, a line each; what the host's start-up files print is passed over
ask_host() {
    local answer status=0
    # shellcheck disable=SC2016  # expanded on the host
    answer="$(ssh -q -o ConnectTimeout=15 "$1" "bash -s -- $(printf '%q' "$2")" <<<'
        { cd -- "$1" && source iridis/env.sh; } 2>/dev/null || exit 2
        for folder in "$REPO_DIR/iridis" "$RESULTS_DIR"; do [[ ! -d "$folder" ]] || printf "\nfetch:%s\n" "$folder"; done')" || status=$?
    [[ "$status" -ne 255 ]] || die "cannot reach $1; see what this says: ssh $1"
    [[ "$status" -eq 0 ]] || die "$1 has no iridis/env.sh in $2; name the clone there: --from REMOTE_REPO"
    sed -n 's/^fetch://p' <<<"$answer"
}

host="" to="" from="$(basename "$REPO_DIR")" checkpoints="" dry_run=""
while [[ $# -gt 0 ]]; do
    case "$1" in
        --checkpoints) checkpoints=yes ;;
        --dry-run) dry_run=yes ;;
        --to | --from)
            [[ $# -ge 2 ]] || die "$1 needs a folder; $USAGE"
            if [[ "$1" == --to ]]; then to="$2"; else from="${2#\~/}"; fi
            shift
            ;;
        -*) die "unknown option $1; $USAGE" ;;
        *)
            [[ -z "$host" ]] || die "one HOST, not $host and $1; $USAGE"
            host="$1"
            ;;
    esac
    shift
done
[[ -n "$host" ]] || die "$USAGE"
command -v rsync >/dev/null || die "rsync is not installed on this machine"
to="${to:-$SCRATCH_DIR/fetched/$host}"

folders="$(ask_host "$host" "$from")" || exit
sources=()
while IFS= read -r folder; do
    sources+=("$host:$(dirname "$folder")/./$(basename "$folder")/") # -R keeps what follows /./
done <<<"$folders"

# a part of a file waits under .rsync-partial, so that it never bears the file's name; of iridis/ only run folders
options=(-rltzsvR --partial --partial-dir=.rsync-partial "--exclude=.*.tmp" "--exclude=*.packed") # an index that main.py makes again
[[ -n "$checkpoints" ]] || options+=("--exclude=*.pt" "--exclude=*.pt.abandoned*" "--exclude=*.pt.damaged*")
[[ -z "$dry_run" ]] || options+=(--dry-run)
options+=(--include=/iridis/ "--include=/iridis/*/" "--include=/iridis/*/run_*/" "--include=/iridis/*/run_*/**" "--exclude=/iridis/**")
mkdir -p "$to"
status=0
rsync "${options[@]}" "${sources[@]}" "$to/" || status=$?
# 24: a file was deleted meanwhile, as running jobs do with old checkpoints
[[ "$status" -eq 0 || "$status" -eq 24 ]] || die "rsync ended with code $status, see above; the same command goes on from there"
printf 'fetched to %s; look at it with: python status.py %q\n' "$to" "$to"

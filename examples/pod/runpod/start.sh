#!/bin/sh
# Runs Ollama in a RunPod pod, and stops the pod when its gateway has gone: a dead man's switch.
# Needs sh, curl, sleep and rm. ../README.md says how to use it, and why it works as it does.

# --- RunPod: how this pod ends itself ---------------------------------------------------------------
api=${GPUGATE_POD_API:-https://api.runpod.io/v2}
pod=$RUNPOD_POD_ID # both are given to every pod by RunPod; the key can do nothing but this pod
key=$RUNPOD_API_KEY

ask_to_stop() { call POST "pods/$pod/action" '{"action":"stop"}'; }
ask_to_destroy() { call POST "pods/$pod/action" '{"action":"terminate"}'; }

# --- the same for every provider --------------------------------------------------------------------
lease=${GPUGATE_LEASE:-} # `gpugate check` prints it
minutes=${GPUGATE_LEASE_MINUTES:-15}
pause=${GPUGATE_LEASE_PAUSE:-10} # seconds between two looks; six looks are a minute
at_end=${GPUGATE_AT_END:-stop}
letter=${OLLAMA_MODELS:-${HOME:-/root}/.ollama/models}/blobs/sha256-$lease

say() { printf 'gpugate-pod: %s\n' "$*" >&2; }

# One call; prints the status of the answer. The key goes in by a pipe: a command line can be read by all.
call() {
    printf 'header = "Authorization: Bearer %s"\n' "$key" |
        curl --config - --silent --show-error --max-time 30 --user-agent gpugate-pod/1 \
            --request "$1" --header 'Content-Type: application/json' --data "$3" \
            --output /dev/null --write-out '%{http_code}' "$api/$2" 2>&1
}

# The gateway leaves a letter with Ollama; taking it out makes room for the next. A letter that cannot be
# taken is none: it would count for ever.
renewed() { [ -e "$letter" ] && rm -f "$letter" 2>/dev/null; }

# What keeps the switch from working, if anything does. Nobody takes the letters then, and the gateway warns.
trouble() {
    case $lease in
    '') echo 'GPUGATE_LEASE is not set' ;;
    *[!0-9a-f]*) echo 'GPUGATE_LEASE is not what `gpugate check` prints' ;;
    *)
        if [ ${#lease} -ne 64 ]; then
            echo 'GPUGATE_LEASE is not what `gpugate check` prints'
        elif [ -z "$pod" ] || [ -z "$key" ]; then
            echo 'the provider gave no credentials to this container'
        fi
        for tool in curl sleep rm; do
            command -v $tool >/dev/null || echo "there is no $tool in this image"
        done
        ;;
    esac
}

# Between two looks. Never shorter by mistake: a pause that is no number must not count the minutes down.
rest() {
    sleep "$pause" 2>/dev/null &
    wait $! || sleep 10
}

# The command, started again whenever it ends: a container that ends may be restarted, and is billed on.
serve() {
    trap 'kill "$child" 2>/dev/null; exit 0' TERM
    while :; do
        "$@" &
        child=$!
        wait "$child"
        say "$1 ended with status $?; it is started again"
        rest
    done
}

# A number of looks, not a clock: a clock that jumps must neither stop a pod nor keep it.
watch() {
    looks=$((minutes * 6))
    left=$looks
    while :; do
        rest
        if renewed; then
            [ "$left" -gt 0 ] || say 'the gateway is back'
            left=$looks
            continue
        fi
        left=$((left - 1))
        [ "$left" -gt 0 ] || end $((-left))
    done
}

# For ever, until it works: an accepted stop is no proof, and this process ends with the pod.
end() {
    [ "$1" -gt 0 ] || say "no sign of the gateway for $minutes min: this pod ends itself ($at_end)"
    if [ "$at_end" = destroy ] && [ $(($1 % 2)) -eq 0 ]; then # every other time: better stopped than nothing
        say "destroy: $(ask_to_destroy)"
    else
        say "stop: $(ask_to_stop)"
    fi
}

[ $# -gt 0 ] || set -- ollama serve
case $minutes in
'' | *[!0-9]* | 0*) say "GPUGATE_LEASE_MINUTES is no number of minutes: 15 are taken" && minutes=15 ;;
esac
serve "$@" &
server=$!
trap 'kill "$server" 2>/dev/null; exit 0' TERM INT # the provider stops the container

trouble=$(trouble)
if [ -z "$trouble" ]; then
    say "this pod ends itself ($at_end) after $minutes min without its gateway"
    watch
fi
say "THE DEAD MAN'S SWITCH IS OFF: $trouble"
while :; do
    wait "$server"
    rest
done

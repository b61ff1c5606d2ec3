# shellcheck shell=bash
# Completions of portreeved for bash.
_portreeved() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} word command=
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        case $word in check | explain) command=$word ;; esac
    done
    COMPREPLY=()
    case $prev in
    -c | --config)
        compopt -o filenames
        mapfile -t COMPREPLY < <(compgen -f -- "$cur")
        return
        ;;
    --log-format)
        mapfile -t COMPREPLY < <(compgen -W 'text json journald' -- "$cur")
        return
        ;;
    --as)
        mapfile -t COMPREPLY < <(compgen -u -- "$cur")
        return
        ;;
    esac
    case $command:$cur in
    check:-*) word='--json --strict --syntax --verbose' ;;
    explain:-*) word='--as --json --verbose' ;;
    :-*) word='--config --help --log-format --notify-fd --takeover --takeover=force --version' ;;
    :*) word='check explain' ;;
    explain:*)
        [ "$prev" = explain ] || word='address listen'
        ;;
    *) word= ;;
    esac
    mapfile -t COMPREPLY < <(compgen -W "${word-}" -- "$cur")
    case $prev:$cur in
    *:-*) ;;
    check:* | explain:*)
        compopt -o filenames
        mapfile -t COMPREPLY < <(compgen -f -- "$cur")
        ;;
    esac
}
complete -F _portreeved portreeved

#compdef portreeved
# Completions of portreeved for zsh.
_arguments -S \
    '(-c --config)'{-c,--config}'[the configuration file]:file:_files' \
    '--log-format[the format of log lines]:format:(text json journald)' \
    '--takeover=-[replace the running broker]::force:(force)' \
    '--notify-fd[write a newline to this descriptor when the broker serves]:descriptor:' \
    '--strict[check: treat warnings as errors]' \
    '--syntax[check: only the syntax of this file]' \
    '--json[check, explain: print one JSON document]' \
    '(-v --verbose)'{-v,--verbose}'[check, explain: list more]' \
    '--as[explain listen, explain address: the peer]:user:_users' \
    '(-h --help)'{-h,--help}'[show the help]' \
    '(-V --version)'{-V,--version}'[show the version]' \
    '1:command:(check explain)' \
    '2:file:_files' \
    '3:question:(listen address)'

# Completions of portreeved for fish.
complete -c portreeved -f
complete -c portreeved -n __fish_use_subcommand -a check -d 'report all errors of a configuration'
complete -c portreeved -n __fish_use_subcommand -a explain -d 'show privileges, and what each peer is allowed'
complete -c portreeved -n '__fish_seen_subcommand_from check explain' -F
complete -c portreeved -n '__fish_seen_subcommand_from explain' -a 'listen address'
complete -c portreeved -s c -l config -r -F -d 'the configuration file'
complete -c portreeved -l log-format -x -a 'text json journald' -d 'the format of log lines'
complete -c portreeved -l takeover -d 'replace the running broker'
complete -c portreeved -l notify-fd -x -d 'write a newline to this descriptor when the broker serves'
complete -c portreeved -n '__fish_seen_subcommand_from check' -l strict -d 'treat warnings as errors'
complete -c portreeved -n '__fish_seen_subcommand_from check' -l syntax -d 'check only the syntax of this file'
complete -c portreeved -n '__fish_seen_subcommand_from check explain' -l json -d 'print one JSON document'
complete -c portreeved -n '__fish_seen_subcommand_from check explain' -s v -l verbose -d 'list more'
complete -c portreeved -n '__fish_seen_subcommand_from explain' -l as -x -a '(__fish_complete_users)' -d 'the peer'
complete -c portreeved -s h -l help -d 'show the help'
complete -c portreeved -s V -l version -d 'show the version'

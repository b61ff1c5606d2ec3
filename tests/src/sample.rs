//! Sample configurations that many tests start from.

use crate::broker::SOCKET;
use crate::chroot::Chroot;

/// A security scope with one capability, as in users' configurations.
pub const FIRST_SECURITY: &str = r#"
security {
  user = ecuser
  group = ecuser
  capabilities = "cap_net_bind_service+ep"
  privileges = "basic net_privaddr"
}
"#;
/// A security scope with four capabilities.
pub const SECOND_SECURITY: &str = r#"
security {
  user = ecuser
  group = ecuser
  capabilities = "cap_net_admin+ep cap_net_bind_service+ep cap_net_raw+ep cap_sys_resource+ep"
  privileges = "basic net_privaddr net_bindmlp sys_resource sys_net_config net_rawaccess"
}
"#;

/// A broker without a worker. On its control socket, root and nobody are allowed the listeners in `listen`, a list in the
/// syntax of the configuration.
pub fn control(listen: &str) -> String {
    format!(
        r#"
        security {{
            user = nobody
            group = nogroup
            capabilities = "cap_net_bind_service+ep"
        }}
        {}"#,
        socket(listen)
    )
}

/// Only the broker scope of [`control`].
pub fn socket(listen: &str) -> String {
    format!(
        r#"
        broker {{
            socket = "{SOCKET}"
            socket_mode = 0666
            permit "any" {{ listen = {listen} }}
            peer root {{ allow = ( status listen ) permit = ( any ) }}
            peer nobody {{ allow = ( status listen ) permit = ( any ) }}
        }}"#
    )
}

/// A broker with a worker in a chroot. `command` is the value of the worker scope's option, and `rest` is added to the
/// configuration.
pub fn worker(chroot: &Chroot, command: &str, rest: &str) -> String {
    format!(
        r#"
        security {{
            user = nobody
            group = nogroup
            chroot = "{}"
            capabilities = "cap_net_bind_service+ep"
        }}
        worker {{ command = {command} }}
        {rest}"#,
        chroot.path.display()
    )
}

/// A broker without a worker. On its control socket, root is allowed the addresses of the network of [`crate::lan`], all
/// listeners, and operations on the interface. `more` is added to the configuration.
pub fn addresses(more: &str) -> String {
    format!(
        r#"
        security {{
            user = nobody
            group = nogroup
            capabilities = "cap_net_admin,cap_net_raw,cap_net_bind_service+ep"
        }}
        cluster {{
            topology "10.1.1.0/24" {{ interface = eth1 }}
            topology "10.2.0.0/16" {{ interface = eth1 }}
            topology "2001:db8::/64" {{ interface = eth1 }}
            topology "10.9.0.0/24" {{ interface = nowhere0 }}
        }}
        broker {{
            socket = "{SOCKET}"
            socket_mode = 0666
            permit "any" {{
                address = ( "10.0.0.0/8" "2001:db8::/64" )
                listen = ( "*:1-65535" "[::]:1-65535" )
                interface = ( eth1 )
            }}
            peer root {{ allow = ( status listen address link ) permit = ( any ) }}
            peer nobody {{ allow = ( address ) permit = ( any ) }}
        }}
        {more}"#
    )
}

//! The privileges of Solaris and illumos, with the closest Linux capabilities.
//!
//! Promises: every name of illumos' `privileges(7)` and of Solaris 11.3, in alphabetical order. "Closest" is a hint for an operator
//! who migrates a configuration: no capability matches a privilege exactly, and most grant more. Touches nothing.

use caps::Capability::{self, *};

/// Where a privilege is available by default, from the widest to the narrowest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub(super) enum Reach {
    /// Every process has it: the set `basic`.
    Basic,
    /// Available in a zone: the set `zone`, the default of zonecfg(8).
    Zone,
    /// Available in the global zone only.
    Global,
}
use Reach::{Basic, Global, Zone};

/// One privilege.
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) reach: Reach,
    pub(super) nearest: &'static [Capability],
}

const fn row(name: &'static str, reach: Reach, nearest: &'static [Capability]) -> Row {
    Row { name, reach, nearest }
}

/// Every privilege, in alphabetical order.
pub(super) const PRIVILEGES: &[Row] = &[
    row("contract_event", Zone, &[]),
    row("contract_identity", Zone, &[]),
    row("contract_observer", Zone, &[]),
    row("cpc_cpu", Zone, &[CAP_PERFMON]),
    row("dax_access", Zone, &[]),
    row("dtrace_kernel", Global, &[CAP_BPF, CAP_PERFMON]),
    row("dtrace_proc", Zone, &[CAP_BPF, CAP_PERFMON]),
    row("dtrace_user", Zone, &[CAP_BPF, CAP_PERFMON]),
    row("file_chown", Zone, &[CAP_CHOWN]),
    row("file_chown_self", Zone, &[CAP_CHOWN]),
    row("file_dac_execute", Zone, &[CAP_DAC_OVERRIDE]),
    row("file_dac_read", Zone, &[CAP_DAC_READ_SEARCH]),
    row("file_dac_search", Zone, &[CAP_DAC_READ_SEARCH]),
    row("file_dac_write", Zone, &[CAP_DAC_OVERRIDE]),
    row("file_downgrade_sl", Zone, &[CAP_MAC_ADMIN]),
    row("file_flag_set", Zone, &[CAP_LINUX_IMMUTABLE]),
    row("file_link_any", Basic, &[]),
    row("file_owner", Zone, &[CAP_FOWNER]),
    row("file_read", Basic, &[]),
    row("file_setid", Zone, &[CAP_FSETID]),
    row("file_upgrade_sl", Zone, &[CAP_MAC_ADMIN]),
    row("file_write", Basic, &[]),
    row("graphics_access", Zone, &[]),
    row("graphics_map", Zone, &[]),
    row("hyprlofs_control", Zone, &[]),
    row("ipc_dac_read", Zone, &[CAP_IPC_OWNER]),
    row("ipc_dac_write", Zone, &[CAP_IPC_OWNER]),
    row("ipc_owner", Zone, &[CAP_IPC_OWNER]),
    row("net_access", Basic, &[]),
    row("net_bindmlp", Zone, &[CAP_MAC_ADMIN]),
    row("net_icmpaccess", Zone, &[CAP_NET_RAW]),
    row("net_mac_aware", Zone, &[CAP_MAC_OVERRIDE]),
    row("net_mac_implicit", Zone, &[CAP_MAC_OVERRIDE]),
    row("net_observability", Zone, &[CAP_NET_RAW]),
    row("net_privaddr", Zone, &[CAP_NET_BIND_SERVICE]),
    row("net_rawaccess", Zone, &[CAP_NET_RAW]),
    row("proc_audit", Zone, &[CAP_AUDIT_WRITE]),
    row("proc_chroot", Zone, &[CAP_SYS_CHROOT]),
    row("proc_clock_highres", Zone, &[CAP_WAKE_ALARM]),
    row("proc_exec", Basic, &[]),
    row("proc_fork", Basic, &[]),
    row("proc_info", Basic, &[]),
    row("proc_lock_memory", Zone, &[CAP_IPC_LOCK]),
    row("proc_meminfo", Zone, &[CAP_SYS_RAWIO]),
    row("proc_owner", Zone, &[CAP_KILL, CAP_SYS_PTRACE]),
    row("proc_priocntl", Zone, &[CAP_SYS_NICE]),
    row("proc_prioup", Zone, &[CAP_SYS_NICE]),
    row("proc_secflags", Basic, &[]),
    row("proc_session", Basic, &[]),
    row("proc_setid", Zone, &[CAP_SETUID, CAP_SETGID]),
    row("proc_taskid", Zone, &[]),
    row("proc_zone", Global, &[CAP_KILL, CAP_SYS_PTRACE]),
    row("sys_acct", Zone, &[CAP_SYS_PACCT]),
    row("sys_admin", Zone, &[CAP_SYS_ADMIN]),
    row("sys_audit", Zone, &[CAP_AUDIT_CONTROL]),
    row("sys_config", Global, &[CAP_SYS_ADMIN]),
    row("sys_devices", Global, &[CAP_SYS_RAWIO, CAP_MKNOD]),
    row("sys_dl_config", Global, &[CAP_NET_ADMIN]),
    row("sys_flow_config", Zone, &[CAP_NET_ADMIN]),
    row("sys_fs_import", Global, &[CAP_SYS_ADMIN]),
    row("sys_ib_config", Zone, &[CAP_NET_ADMIN]),
    row("sys_ib_info", Zone, &[CAP_NET_ADMIN]),
    row("sys_ip_config", Zone, &[CAP_NET_ADMIN]),
    row("sys_ipc_config", Zone, &[CAP_SYS_RESOURCE]),
    row("sys_iptun_config", Zone, &[CAP_NET_ADMIN]),
    row("sys_linkdir", Global, &[CAP_DAC_OVERRIDE]),
    row("sys_mount", Zone, &[CAP_SYS_ADMIN]),
    row("sys_net_config", Global, &[CAP_NET_ADMIN, CAP_SYS_MODULE]),
    row("sys_nfs", Zone, &[CAP_SYS_ADMIN]),
    row("sys_ppp_config", Zone, &[CAP_NET_ADMIN]),
    row("sys_res_bind", Zone, &[CAP_SYS_NICE]),
    row("sys_res_config", Global, &[CAP_SYS_NICE, CAP_SYS_RESOURCE]),
    row("sys_resource", Zone, &[CAP_SYS_RESOURCE]),
    row("sys_share", Global, &[CAP_SYS_ADMIN]),
    row("sys_smb", Zone, &[CAP_NET_BIND_SERVICE]),
    row("sys_suser_compat", Global, &[CAP_SYS_ADMIN]),
    row("sys_time", Zone, &[CAP_SYS_TIME]),
    row("sys_trans_label", Zone, &[CAP_MAC_ADMIN]),
    row("virt_manage", Global, &[]),
    row("win_colormap", Zone, &[]),
    row("win_config", Zone, &[]),
    row("win_dac_read", Zone, &[]),
    row("win_dac_write", Zone, &[]),
    row("win_devices", Zone, &[]),
    row("win_dga", Zone, &[]),
    row("win_downgrade_sl", Zone, &[]),
    row("win_fontpath", Zone, &[]),
    row("win_mac_read", Zone, &[]),
    row("win_mac_write", Zone, &[]),
    row("win_selection", Zone, &[]),
    row("win_upgrade_sl", Zone, &[]),
    row("xvm_control", Global, &[]),
];

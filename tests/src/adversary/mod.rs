//! Hostile peers: tricks by which a peer of the broker could harm others, and a scene that measures whether one does.
//!
//! A [`Scene`] is a host with a broker, its worker, a second broker, and a [`Victim`](victim::Victim): a well-behaved user
//! with listeners, an address and a subscription. [`Scene::play`] lets hostile peers perform one trick at the same time,
//! each with the same permits as the victim, and returns the violations of these invariants:
//!
//! - Each request of the victim, the worker, root's command line and the second broker succeeds, and takes at most twice
//!   its idle latency and 200 ms. See [`latency`].
//! - The victim's and the worker's listeners keep their ids and holders, and receive each connection to their endpoints.
//! - The victim's lease keeps its holder and its epoch. An address that nobody holds can be added.
//! - An endpoint that a hostile peer held is free for the next holder when it has been stopped.
//! - Each grant to the victim has its line in the log, which is read slowly. No line has a field that a peer forged.
//! - The broker continues to run. When the hostile peers have hung up, its descriptors and its memory are as before.
//!
//! A new trick is one file in `tricks` and one row of [`for_each_trick!`](crate::for_each_trick). The soak test uses the same tricks.

use std::time::Duration;

pub mod attacker;
pub mod latency;
pub mod log_reader;
pub mod scene;
pub mod session;
pub mod socket_option;
pub mod tricks;
pub mod victim;

pub use attacker::{Attacker, Who, as_user};
pub use scene::Scene;

/// What a hostile peer does to harm others.
pub trait Trick: Sync {
    /// Performs the trick again and again, until [`Attacker::next_round`] returns false. What it holds is released when it
    /// returns. A harm that only the attacker notices is reported by [`Attacker::harm`].
    fn attack(&self, attacker: &mut Attacker<'_>);

    /// Whether the trick is an attack if this peer performs it. Root, for example, is allowed to stop each listener.
    fn suits(&self, _: Who) -> bool {
        true
    }
}

/// Calls a macro with a row for each trick: the behaviour of the broker that the trick tests, and the trick. The rows of
/// `exclusive` exhaust a resource that namespaces do not separate.
#[macro_export]
macro_rules! for_each_trick {
    ($rows:ident) => {
        $rows! {
            isolated {
                a_stopped_endpoint_is_free_whatever_filter_its_holder_locked: locked_filter::LockedFilter,
                a_stopped_copy_that_listens_again_keeps_no_endpoint: stopped_copy::ListensAgain,
                a_hang_up_frees_an_endpoint_whatever_its_holder_set: stopped_copy::HangsUp,
                a_former_holder_whose_connections_occupy_an_endpoint_is_named: stopped_copy::KeepsConnections,
                options_that_one_holder_sets_reach_no_other_holder: socket_options::SocketOptions,
                epochs_of_others_cannot_be_changed: epochs::ForeignEpochs,
                epochs_of_others_cannot_be_pushed_out: epochs::ManyEpochs,
                requests_about_objects_of_others_change_nothing: foreign_objects::ForeignObjects,
                repeated_hellos_displace_no_log_line: hellos::Hellos,
                sessions_of_users_leave_room_for_others: sessions::FullTable,
                connections_without_a_hello_delay_nobody: sessions::ShortConnections,
                an_overlapping_endpoint_gets_no_connection: overlap::Overlap,
                unread_replies_delay_nobody_else: unread_replies::UnreadReplies,
                malformed_frames_delay_nobody: malformed::MalformedFrames,
                subscriptions_delay_nobody: subscriptions::Subscriptions,
                granted_listeners_in_a_loop_delay_nobody: granted::Listeners,
                granted_addresses_in_a_loop_delay_nobody: granted::Addresses,
                probes_in_flight_delay_nobody: granted::Probes,
                queries_in_a_loop_delay_nobody: granted::Queries,
                text_of_a_peer_forges_no_field_of_the_log: log_text::LogText,
                takeovers_and_reloads_by_others_change_nothing: takeover_attempts::TakeoverAttempts,
                requests_for_limits_change_no_other_process: limits::Limits,
                paths_of_others_cannot_be_replaced: unix_paths::ForeignPaths,
                a_lent_unix_listener_never_looks_like_root: unix_paths::Credentials,
                refused_requests_delay_nobody: refusals::Refusals,
                requests_of_maximum_size_delay_nobody: huge_requests::HugeRequests,
                listeners_of_users_leave_room_for_others: full_tables::ManyListeners,
                addresses_of_users_leave_room_for_others: full_tables::ManyAddresses,
            }
            exclusive {
                unread_descriptors_of_one_request_stop_no_hand_over: in_flight::OneRequest,
                unread_descriptors_of_many_sessions_stop_no_hand_over: in_flight::ManySessions,
                unread_descriptors_of_ended_sessions_stop_no_hand_over: in_flight::EndedSessions,
            }
        }
    };
}

/// A trick of the table.
pub struct Row {
    /// The behaviour that it tests.
    pub name: &'static str,
    /// The trick.
    pub trick: &'static dyn Trick,
    /// Whether it exhausts a resource that namespaces do not separate.
    pub exclusive: bool,
}

macro_rules! table {
    ($(
        $kind:ident { $($name:ident: $module:ident :: $trick:ident,)* }
    )*) => {
        /// Every trick.
        pub const TRICKS: &[Row] = &[$($(Row {
            name: stringify!($name),
            trick: &tricks::$module::$trick,
            exclusive: matches!(stringify!($kind).as_bytes(), b"exclusive"),
        },)*)*];
    };
}
for_each_trick!(table);

/// The trick with this name.
pub fn trick(name: &str) -> &'static dyn Trick {
    TRICKS.iter().find(|row| row.name == name).unwrap_or_else(|| panic!("no trick {name}")).trick
}

/// Every trick for a moment, in random order. See [`Everything::exclusive`].
pub struct Everything {
    /// Whether tricks are included that exhaust a resource which namespaces do not separate.
    pub exclusive: bool,
}

impl Trick for Everything {
    fn attack(&self, attacker: &mut Attacker<'_>) {
        let suits = |row: &&Row| row.trick.suits(attacker.who) && (self.exclusive || !row.exclusive);
        let rows: Vec<&Row> = TRICKS.iter().filter(suits).collect();
        while attacker.next_round() {
            let Some(row) = attacker.random.pick(&rows).copied() else { return };
            let time = Duration::from_millis(30 + attacker.random.below(120));
            attacker.perform(row.name, row.trick, Some(time));
        }
    }
}

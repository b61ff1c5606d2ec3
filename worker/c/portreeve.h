/*
 * Client of Portreeve, a privileged-helper broker for Linux: a daemon without privileges requests listeners on privileged
 * ports and IP addresses with leases. This header and portreeve.c are the whole library, in C99 and with libc only. Copy both
 * into a source tree, or install them (package libportreeve-dev).
 *
 *     struct portreeve *broker;
 *     struct portreeve_error error;
 *     int listener;
 *
 *     if (portreeve_connect(&broker, PORTREEVE_DEFAULT_SOCKET, "my-server", PORTREEVE_DEFAULT_TIMEOUT, &error) < 0 ||
 *         (listener = portreeve_listen(broker, "*:25", NULL, NULL, &error)) < 0) {
 *         fprintf(stderr, "%s. %s\n", error.message, error.remedy);
 *         exit(1);
 *     }
 *
 * Results. A function that can fail returns a negative number: an error number of errno(3) with the sign changed. If `error`
 * is not NULL, a failing function fills it in; a function that succeeds leaves it unchanged. errno itself has no meaning
 * afterwards.
 *
 * Descriptors. Every descriptor that the library returns is close-on-exec and belongs to the caller, who closes it. The
 * library closes all others that it receives. A listening socket works without the session and without the broker.
 *
 * Time. A request waits at most for the time limit of the session, then fails with -ETIMEDOUT. The broker may still execute
 * it. Its late reply is discarded, and sockets in it are closed. It is safe to repeat a request for a listener: it returns
 * the same socket. Signals do not end a wait.
 *
 * Threads. There is no global state. Threads can use different sessions at the same time, but each session only one at a time.
 *
 * fork(2). A session belongs to the process that opened it: in a child process every function but portreeve_close fails
 * with -ECHILD. The child calls portreeve_close, which does not end the session of the parent, or executes a program.
 *
 * Memory. A session is one allocation of about 160 KiB. Nothing that the broker sends changes the size of an allocation.
 *
 * The broker's text. All text is valid UTF-8 that ends with NUL. Characters that control a terminal or the direction of
 * text are replaced by "?".
 *
 * The protocol is specified in WIRE.md, and faults are explained in portreeve-faults(7).
 */
#ifndef PORTREEVE_H
#define PORTREEVE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The control socket unless the configuration of the broker names another. */
#define PORTREEVE_DEFAULT_SOCKET "/run/portreeve/broker.sock"
/* A time limit in milliseconds that suits every request. Adding an address with three probes takes about 1 s. */
#define PORTREEVE_DEFAULT_TIMEOUT 30000
/* No time limit. */
#define PORTREEVE_NO_TIMEOUT (-1)

/* The maximum number of listeners, and of addresses, in one request. */
#define PORTREEVE_MAX_LISTENERS 253
#define PORTREEVE_MAX_ADDRESSES 256
/* The maximum number of addresses on a page of portreeve_list_addresses, and of recent events. */
#define PORTREEVE_MAX_ROWS 256
#define PORTREEVE_MAX_RECENT 128

/* Sizes of text fields with the final NUL. An address has the notation of inet_ntop(3). */
#define PORTREEVE_ADDRESS_SIZE 46
#define PORTREEVE_INTERFACE_SIZE 16

/* ---- Errors ---- */

/* The faults of the broker. A later release can send others. */
enum portreeve_fault {
    PORTREEVE_DENIED = 1,             /* -EACCES: no permit allows the request */
    PORTREEVE_NOT_RETAINED = 2,       /* -EPERM: the broker did not retain the capability */
    PORTREEVE_IN_USE = 3,             /* -EADDRINUSE: the endpoint or address is in use; subject is its owner */
    PORTREEVE_NOT_LOCAL = 4,          /* -EADDRNOTAVAIL: no interface has the address */
    PORTREEVE_UNKNOWN_INTERFACE = 5,  /* -ENODEV: the interface does not exist */
    PORTREEVE_TENTATIVE = 6,          /* -EAGAIN: the IPv6 address is still in duplicate address detection */
    PORTREEVE_CONFLICT = 7,           /* -EEXIST: another host uses the address; subject is its hardware address */
    PORTREEVE_QUOTA = 8,              /* -EDQUOT: a quota is exhausted */
    PORTREEVE_MALFORMED = 9,          /* -EBADMSG: the request violates the protocol; the session ends */
    PORTREEVE_UNSUPPORTED = 10,       /* -EOPNOTSUPP: the broker cannot perform the request */
    PORTREEVE_BUSY = 11,              /* -EBUSY: retry later */
    PORTREEVE_EXPIRED = 12,           /* -ESTALE: the lease has expired, or the epoch is too old */
    PORTREEVE_OS = 13,                /* the error number of the broker's system call; subject is its name */
    PORTREEVE_NOT_FOUND = 14,         /* -ENOENT: this peer has no such listener or address */
    PORTREEVE_INVALID = 15            /* -EINVAL */
};

/*
 * Why a function failed. Errors without a fault, found by this library:
 *
 *     EINVAL, ENAMETOOLONG, E2BIG, EILSEQ  an argument is wrong; nothing was sent
 *     ENOMEM            there is no memory for a session
 *     ETIMEDOUT         no reply came within the time limit; the session continues
 *     EBUSY             too many earlier requests still have no reply
 *     EMFILE            this process had no free descriptors for the sockets of a reply. The session continues. Close some
 *                       descriptors and repeat the request: the broker still has the listeners
 *     ECONNRESET        the broker closed the session, and `ended` is set. Connect again
 *     EPROTO            the broker violated the protocol, and `ended` is set
 *     EPROTONOSUPPORT   the broker speaks another version of the protocol, and `ended` is set
 *     ECHILD            another process opened this session: see fork(2) above
 */
struct portreeve_error {
    int number;         /* the error number, positive */
    unsigned fault;     /* the broker's fault, one of enum portreeve_fault; 0 if the library found the error */
    bool ended;         /* the session has ended: every later call fails with the same error */
    char subject[129];  /* the object of the fault, which depends on the fault; may be empty */
    char message[513];  /* what failed, and why */
    char remedy[513];   /* what to do; may be empty */
};

/* The name of a fault, such as "denied"; "unknown" for one that this library does not know. The text is constant. */
const char *portreeve_fault_name(unsigned fault);

/* ---- Sessions ---- */

/* A session with the broker. */
struct portreeve;

/*
 * Connects to the control socket at `path` and opens a session. `name` of at most 64 bytes identifies this program in the
 * broker's log; policy depends on the user of this process only. `timeout` is in milliseconds: connecting and opening each
 * take at most that long, and it becomes the time limit of the session. Stores the session in `*session`, or NULL on failure.
 *
 * Besides the errors above: those of socket(2) and connect(2), such as -ENOENT and -ECONNREFUSED (no broker is running),
 * -EACCES (this user may not write to the socket). After -ENOENT, -ECONNREFUSED and -ETIMEDOUT, and after the end of a
 * session, try again with pauses that grow, for example from 0.1 s to 5 s.
 */
int portreeve_connect(struct portreeve **session, const char *path, const char *name, int timeout,
                      struct portreeve_error *error);

/*
 * Opens the session of the broker's worker, on the descriptor that the environment variable PORTREEVE_CHANNEL names. The
 * descriptor becomes close-on-exec and belongs to the session; if no session can be opened on it, it is closed. The
 * environment is only read. Call it once.
 *
 * -ENOENT: the variable is not set, so the broker did not start this program. -EBADF: the descriptor is not open, or is
 * close-on-exec already, so it was not inherited or is in use. -ENOTSOCK: it is not a channel.
 */
int portreeve_inherit(struct portreeve **session, const char *name, int timeout, struct portreeve_error *error);

/*
 * Opens a session on a connected Unix socket of type SOCK_SEQPACKET, for example one that another process connected. On
 * success `channel` belongs to the session; on failure it stays the caller's. Its flags are not changed.
 */
int portreeve_open(struct portreeve **session, int channel, const char *name, int timeout, struct portreeve_error *error);

/*
 * Ends a session and frees it; NULL is ignored. The listeners of a session on the control socket stop. Those of the worker
 * stay open while it runs, and its successor gets them. Leases of addresses continue until they expire.
 *
 * In a child process, it only closes the child's copy of the channel and frees the child's memory.
 */
void portreeve_close(struct portreeve *session);

/*
 * The channel, to wait for POLLIN with poll(2), or level-triggered with epoll(7). When it is readable, and after any request,
 * call portreeve_next_event with the time limit 0 until it returns 0: events that arrived before a reply are queued, and then
 * the channel is not readable. The descriptor belongs to the session. Do not read, write or close it.
 */
int portreeve_channel(const struct portreeve *session);

/* Changes the time limit of the session, in milliseconds. */
void portreeve_set_timeout(struct portreeve *session, int timeout);

/* The broker's reply to the opening of the session. */
struct portreeve_welcome {
    uint32_t broker;          /* process id of the broker in its own pid namespace */
    char release[33];         /* version of the broker's release */
    uint64_t features;        /* protocol features in force: bit 0, the deadlines of leases */
    uint64_t capabilities;    /* effective capabilities of the broker: bit n for capability n, see capabilities(7) */
    char peer[65];            /* the identity of this peer: "the worker", or a user */
    size_t operation_count;   /* number of operations below */
    char operations[32][17];  /* names of the operations that policy allows this peer, such as "listen" */
};

/* The broker's reply to the opening of the session. Valid until portreeve_close. */
const struct portreeve_welcome *portreeve_welcome(const struct portreeve *session);

/* Whether policy allows this peer an operation, such as "listen" or "subscribe". */
bool portreeve_allows(const struct portreeve *session, const char *operation);

/* Checks that the broker responds. */
int portreeve_ping(struct portreeve *session, struct portreeve_error *error);

/* ---- Listeners ---- */

/*
 * Options of a listener: see socket(7), ip(7), ipv6(7) and tcp(7). All zeros are the defaults, which the configuration of the
 * broker can set for the endpoint. Initialise with {0} or designated initialisers, so that later fields are zero.
 */
struct portreeve_listen_options {
    unsigned present;         /* which of the optional values below count: PORTREEVE_HAS_... */
    uint32_t backlog;         /* length of the accept queue; PORTREEVE_HAS_BACKLOG */
    uint32_t receive_buffer;  /* SO_RCVBUF in bytes, 0 for the system's default; PORTREEVE_HAS_RECEIVE_BUFFER */
    uint32_t send_buffer;     /* SO_SNDBUF in bytes, 0 for the system's default; PORTREEVE_HAS_SEND_BUFFER */
    uint32_t mode;            /* permission bits of the file of a Unix socket; PORTREEVE_HAS_MODE */
    bool no_delay;            /* TCP_NODELAY; PORTREEVE_HAS_NO_DELAY */
    bool reuse_port;          /* SO_REUSEPORT */
    bool dual_stack;          /* an IPv6 wildcard socket accepts IPv4 too */
    bool free_bind;           /* IP_FREEBIND: bind an address that this host does not have yet */
    const char *device;       /* SO_BINDTODEVICE: the only interface; NULL for all */
    uint32_t defer_accept;    /* TCP_DEFER_ACCEPT in seconds; 0 disables it */
    uint32_t fast_open;       /* TCP_FASTOPEN: maximum queue length; 0 disables it */
};

enum {
    PORTREEVE_HAS_BACKLOG = 1,
    PORTREEVE_HAS_RECEIVE_BUFFER = 2,
    PORTREEVE_HAS_SEND_BUFFER = 4,
    PORTREEVE_HAS_MODE = 8,
    PORTREEVE_HAS_NO_DELAY = 16
};

/*
 * Requests a listener and returns its socket. `options` can be NULL. Stores the number of the listener, which
 * portreeve_stop takes, in `*id` unless `id` is NULL. The endpoint is one of:
 *
 *     *:25  192.0.2.1:25  [::]:25  [2001:db8::1]:25  [fe80::1%eth0]:25   TCP; with the suffix /udp UDP
 *     /run/mail.sock  seqpacket:/run/mail.sock                           Unix sockets
 *
 * A TCP socket listens already. A Unix socket is bound only: call listen(2). A new socket is in blocking mode; O_NONBLOCK
 * belongs to the open file description and so to all copies of the socket, as with any inherited socket. A repeated request
 * for the same endpoint and options returns another descriptor of the same socket.
 */
int portreeve_listen(struct portreeve *session, const char *endpoint, const struct portreeve_listen_options *options,
                     uint64_t *id, struct portreeve_error *error);

/* One listener of portreeve_listen_many. */
struct portreeve_listen_request {
    const char *endpoint;                            /* as for portreeve_listen */
    const struct portreeve_listen_options *options;  /* NULL for the defaults */
};

struct portreeve_listener {
    int socket;                    /* the socket, which belongs to the caller; -1 if this listener failed */
    uint64_t id;                   /* the number of the listener; 0 if it failed */
    struct portreeve_error error;  /* why it failed; error.number is 0 if it did not */
};

/*
 * Requests up to PORTREEVE_MAX_LISTENERS listeners in one round trip. `results` has room for `count` results, in the order of
 * the requests; all are set in any case. Returns 0 if every listener is open. Otherwise it returns the error of the first
 * that is not; the sockets of the others still belong to the caller. With `all_or_nothing`, one failure makes all fail.
 */
int portreeve_listen_many(struct portreeve *session, const struct portreeve_listen_request *requests, size_t count,
                          bool all_or_nothing, struct portreeve_listener *results, struct portreeve_error *error);

struct portreeve_stopped {
    size_t unknown_count;  /* numbers that are not listeners of this peer */
    uint64_t unknown[PORTREEVE_MAX_LISTENERS];
    size_t not_revoked_count;  /* stopped listeners whose socket the kernel did not let the broker disable */
    uint64_t not_revoked[PORTREEVE_MAX_LISTENERS];
};

/*
 * Stops up to PORTREEVE_MAX_LISTENERS listeners by number. Clients in their queues are reset, and every copy of their sockets
 * stops receiving; connections that were accepted continue. The caller still closes its sockets. `stopped` can be NULL.
 * Returns -ENOENT if a number is not a listener of this peer; the others are stopped in any case.
 */
int portreeve_stop(struct portreeve *session, const uint64_t *ids, size_t count, struct portreeve_stopped *stopped,
                   struct portreeve_error *error);

struct portreeve_inherited_listener {
    int socket;      /* the socket, which belongs to the caller */
    char name[256];  /* its name in LISTEN_FDNAMES; "unknown" if it has none */
};

/*
 * Takes the sockets that the broker, or another service manager, passed to this process by LISTEN_FDS: see
 * sd_listen_fds(3). Needs no session. Makes all of them close-on-exec, stores them in order, and stores their number in
 * `*count`; 0 if there are none, or they are for another process. Call it once and early, because descriptors are taken by
 * number. The environment is only read: unset the three variables before this process starts others.
 *
 * -EINVAL: a variable has an invalid value. -EBADF: a descriptor is not open. -E2BIG: there are more than `room`; none is
 * taken.
 */
int portreeve_inherited_listeners(struct portreeve_inherited_listener *listeners, size_t room, size_t *count,
                                  struct portreeve_error *error);

/* ---- Addresses ---- */

/*
 * How an address is added or renewed. All zeros are: the lease of the configuration, epoch 0, no probes, no announcement. Use
 * PORTREEVE_LEASE_OPTIONS, or NULL, for three probes and an announcement. A renewal ignores both.
 */
struct portreeve_lease_options {
    unsigned present;  /* which of lease and until counts, at most one: PORTREEVE_HAS_LEASE or PORTREEVE_HAS_UNTIL */
    uint32_t lease;    /* length of the lease in seconds, at least 3; 0 for a permanent address */
    uint64_t until;    /* end of the lease in nanoseconds of the broker's CLOCK_BOOTTIME */
    uint64_t epoch;    /* fencing token of the party that decides which host has the address; 0 if unused */
    unsigned probes;   /* probes for another host that has the address, 0 to 3, 200 ms each */
    bool announce;     /* announce the address to the neighbours */
};

enum {
    PORTREEVE_HAS_LEASE = 1,
    PORTREEVE_HAS_UNTIL = 2
};

#define PORTREEVE_LEASE_OPTIONS {0, 0, 0, 0, 3, true}

#define PORTREEVE_PERMANENT UINT64_MAX

struct portreeve_lease {
    struct portreeve_error error;              /* why this address failed; if error.number is not 0, no other field counts */
    char address[PORTREEVE_ADDRESS_SIZE];      /* the address */
    char interface[PORTREEVE_INTERFACE_SIZE];  /* the interface that has the address */
    unsigned prefix;                           /* the prefix length */
    uint64_t remaining_ms;                     /* milliseconds until the lease ends, or PORTREEVE_PERMANENT */
    uint64_t epoch;                            /* the epoch of the lease */
    char follows[PORTREEVE_ADDRESS_SIZE];      /* the address that this one follows (duravip_follow); may be empty */
    uint64_t deadline;  /* end of the lease in ns of the broker's CLOCK_BOOTTIME, or PORTREEVE_PERMANENT; 0 if unknown */
};

/*
 * The functions for several addresses take `count` addresses in the notation of inet_pton(3), at most
 * PORTREEVE_MAX_ADDRESSES. They store up to `room` results, first one for each address in order, then one for each follower;
 * and the number of results, which can be greater than `room`, in `*found` unless it is NULL. They return 0 if every address
 * succeeded, and otherwise the error of the first that failed; the others succeeded. If the request as a whole failed, *found
 * is 0. `results` can be NULL if `room` is 0.
 *
 * add: adds addresses to the interfaces that the topology assigns to them. -EADDRINUSE, -EEXIST: somebody else has it.
 * renew: restarts the leases. Renew after a fifth of the lease, and stop using an address whose lease could not be renewed in
 * time. -ESTALE: the lease has expired; -ENOENT: the broker does not have this lease, for example after its restart.
 * announce: announces addresses to the neighbours again.
 * move: moves addresses to another interface of this host, with their leases, listeners and connections.
 */
int portreeve_add_addresses(struct portreeve *session, const char *const *addresses, size_t count,
                            const struct portreeve_lease_options *options, struct portreeve_lease *results, size_t room,
                            size_t *found, struct portreeve_error *error);
int portreeve_renew_addresses(struct portreeve *session, const char *const *addresses, size_t count,
                              const struct portreeve_lease_options *options, struct portreeve_lease *results, size_t room,
                              size_t *found, struct portreeve_error *error);
int portreeve_announce_addresses(struct portreeve *session, const char *const *addresses, size_t count, uint64_t epoch,
                                 struct portreeve_lease *results, size_t room, size_t *found,
                                 struct portreeve_error *error);
int portreeve_move_addresses(struct portreeve *session, const char *const *addresses, size_t count,
                             const char *interface, uint64_t epoch, bool announce, struct portreeve_lease *results,
                             size_t room, size_t *found, struct portreeve_error *error);

struct portreeve_removal {
    struct portreeve_error error;          /* why this address failed; if error.number is not 0, no other field counts */
    char address[PORTREEVE_ADDRESS_SIZE];  /* the address */
    bool verified;                         /* the broker verified that this host no longer has it */
};

/* Removes addresses, stops their listeners and resets their connections. Results as above. */
int portreeve_remove_addresses(struct portreeve *session, const char *const *addresses, size_t count, uint64_t epoch,
                               struct portreeve_removal *results, size_t room, size_t *found,
                               struct portreeve_error *error);

struct portreeve_renewal {
    uint64_t now;          /* the broker's CLOCK_BOOTTIME in nanoseconds when it replied */
    uint64_t deadline;     /* the end of every renewed lease, on the same clock */
    uint32_t renewed;      /* number of renewed leases */
    uint32_t not_renewed;  /* number of leases of this peer that were not renewed */
    bool ipv4_fenced;      /* packet filter rules end the leases of IPv4 addresses */
    bool ipv6_fenced;      /* the same for IPv6 */
};

/* Renews all leases of this peer at once. Only `present`, `lease` and `until` of the options count. `renewal` can be NULL. */
int portreeve_renew_all(struct portreeve *session, const struct portreeve_lease_options *options,
                        struct portreeve_renewal *renewal, struct portreeve_error *error);

struct portreeve_address_row {
    struct portreeve_lease lease;  /* the address and its lease; lease.error is never set */
    char holder[65];               /* the owner of the lease */
    bool present;                  /* the interface has the address now */
};

/*
 * Lists a page of the addresses that the broker manages, after the address `after`; NULL starts at the first. Stores up to
 * `room` rows and their number in `*found`: a page has up to PORTREEVE_MAX_ROWS, and those beyond `room` are left for the next
 * call. Sets `*more` if further addresses follow the last stored one. -EINVAL: `room` is 0.
 */
int portreeve_list_addresses(struct portreeve *session, const char *after, struct portreeve_address_row *rows, size_t room,
                             size_t *found, bool *more, struct portreeve_error *error);

/* ---- Events ---- */

/* The kinds of events. A later release can send others: ignore them. */
enum portreeve_event_code {
    PORTREEVE_GAP = 1,                /* `count` events are missing here */
    PORTREEVE_ADDRESS_ADDED = 2,
    PORTREEVE_ADDRESS_REMOVED = 3,    /* on request */
    PORTREEVE_ADDRESS_LOST = 4,       /* another program removed it; the broker tries to restore it */
    PORTREEVE_ADDRESS_RESTORED = 5,
    PORTREEVE_ADDRESS_CONFLICT = 6,   /* another host uses it too; `detail` is its hardware address */
    PORTREEVE_ADDRESS_EXPIRED = 7,    /* its lease expired, and the broker removed it */
    PORTREEVE_ADDRESS_LEAVING = 8,    /* the broker will remove it within `count` ms: stop using it, then remove it */
    PORTREEVE_ADDRESS_MOVED = 9,      /* to another interface; `detail` is the previous one */
    PORTREEVE_LINK_UP = 10,           /* an interface has a carrier */
    PORTREEVE_LINK_DOWN = 11,
    PORTREEVE_LINK_GONE = 12,         /* an interface was removed */
    PORTREEVE_LINK_RENAMED = 13,      /* `detail` is the previous name */
    PORTREEVE_WORKER_STARTED = 14,    /* the worker `pid`, after `count` earlier starts */
    PORTREEVE_WORKER_ENDED = 15,      /* the worker `pid`; `detail` is its exit status */
    PORTREEVE_RELOADED = 16,          /* a new configuration is in force */
    PORTREEVE_RELOAD_FAILED = 17,     /* `detail` is the cause */
    PORTREEVE_TAKEN_OVER = 18,        /* a new broker took over from its predecessor */
    PORTREEVE_LISTENER_STARTED = 19,  /* a floating listener: `detail` is its endpoint, `count` its number */
    PORTREEVE_LISTENER_STOPPING = 20, /* the same: its address will be removed */
    PORTREEVE_LISTENER_LOST = 21,     /* its only interface was deleted */
    PORTREEVE_LISTENER_RESTORED = 22
};

struct portreeve_event {
    uint64_t number;                           /* sequence number of the broker's events; 0 in a gap */
    uint64_t time_ms;                          /* milliseconds since 1970-01-01 UTC */
    unsigned code;                             /* one of enum portreeve_event_code */
    char address[PORTREEVE_ADDRESS_SIZE];      /* empty if the event has none */
    char interface[PORTREEVE_INTERFACE_SIZE];  /* empty if the event has none */
    uint32_t index;                            /* index of the interface */
    uint32_t pid;
    uint64_t epoch;
    uint64_t count;
    char detail[257];
};

/*
 * Subscribes to future events that concern this peer; with `all` also to others, if this peer is allowed "status". Stores the
 * last `room` of up to PORTREEVE_MAX_RECENT recent events, the oldest first, and their number in `*found`. `recent` can be NULL
 * if `room` is 0, and `found` too. The session queues 64 events that arrive during requests, and replaces those beyond by a
 * gap.
 */
int portreeve_subscribe(struct portreeve *session, bool all, struct portreeve_event *recent, size_t room, size_t *found,
                        struct portreeve_error *error);

/* Ends the subscription. Events that have arrived stay in the queue. */
int portreeve_unsubscribe(struct portreeve *session, struct portreeve_error *error);

/*
 * Waits up to `timeout` milliseconds for the next event, without limit for PORTREEVE_NO_TIMEOUT. Returns 1 and stores the
 * event; 0 if none arrived in time. It is also how a program without a subscription learns that its session has ended.
 */
int portreeve_next_event(struct portreeve *session, struct portreeve_event *event, int timeout,
                         struct portreeve_error *error);

#ifdef __cplusplus
}
#endif

#endif

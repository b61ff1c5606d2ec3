/*
 * The client library of portreeve.h.
 *
 * Promises: nothing that the broker sends sizes an allocation, an index or a copy without a check. A body is decoded to its
 * last byte or the session ends. Every received descriptor is close-on-exec, and reaches the caller or is closed.
 *
 * Sections: errors, text, encoding, decoding, the channel, sessions, listeners, addresses, events.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* MSG_CMSG_CLOEXEC, SO_DOMAIN */
#endif

#include "portreeve.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define PROTOCOL_VERSION 1
#define HEADER_SIZE 16
#define MAX_FRAME 65536
#define MAX_BODY 65520
#define MAX_DESCRIPTORS 253

#define KIND_REPLY 0x8000
#define KIND_EVENT 0xfffe
#define KIND_FAULT 0xffff

#define FEATURE_LEASE_TIMES 1

#define MAX_PATH_LENGTH 107
/* The number of a descriptor after standard input, output and error: SD_LISTEN_FDS_START. */
#define FIRST_INHERITED 3

#define QUEUE_LENGTH 64
/* Pauses between two attempts to connect while the queue of the control socket is full. */
#define FIRST_PAUSE_MS 10
#define MAX_PAUSE_MS 200

enum operation {
    OP_HELLO = 1,
    OP_PING = 2,
    OP_LISTEN = 3,
    OP_LISTEN_MANY = 4,
    OP_STOP = 5,
    OP_ADD_ADDRESS = 7,
    OP_RENEW_ADDRESS = 8,
    OP_REMOVE_ADDRESS = 9,
    OP_ANNOUNCE = 10,
    OP_LIST_ADDRESSES = 11,
    OP_MOVE_ADDRESS = 13,
    OP_SUBSCRIBE = 16,
    OP_RENEW_ALL = 20
};

struct portreeve {
    int channel;
    pid_t process; /* the process that opened the session */
    int timeout;
    uint32_t last_request;
    /* Bit n: request last_request - n has timed out, and its reply can still arrive. */
    uint64_t unanswered;
    struct portreeve_error end; /* why the session has ended; end.number is 0 while it has not */
    struct portreeve_welcome welcome;

    /* A ring of events that arrived while a reply was awaited. */
    struct portreeve_event queue[QUEUE_LENGTH];
    size_t queue_first;
    size_t queue_count;
    uint64_t missed; /* events that did not fit after those in the ring */

    unsigned char outgoing[MAX_FRAME];
    unsigned char incoming[MAX_FRAME];
};

/* A received frame. Its body is in the session's buffer until the next receive. */
struct frame {
    unsigned kind;
    uint32_t request;
    const unsigned char *body;
    size_t length;
    int descriptors[MAX_DESCRIPTORS];
    size_t descriptor_count;
    bool descriptors_lost; /* this process could not receive all; none are here */
};

/* ---- Errors ---- */

static void copy_plain(char *to, size_t size, const char *from) {
    snprintf(to, size, "%s", from);
}

/* Fills in an error that the library found, and returns the negative number. */
static int fail(struct portreeve_error *error, int number, const char *remedy, const char *format, ...)
#if defined(__GNUC__)
    __attribute__((format(printf, 4, 5)))
#endif
    ;

static int fail(struct portreeve_error *error, int number, const char *remedy, const char *format, ...) {
    va_list words;

    if (error != NULL) {
        memset(error, 0, sizeof *error);
        error->number = number;
        va_start(words, format);
        vsnprintf(error->message, sizeof error->message, format, words);
        va_end(words);
        copy_plain(error->remedy, sizeof error->remedy, remedy);
    }
    return -number;
}

static int fail_with(struct portreeve_error *error, const struct portreeve_error *why) {
    if (error != NULL)
        *error = *why;
    return -why->number;
}

static const struct {
    const char *name;
    int number;
} FAULTS[] = {
    {"unknown", EIO},
    {"denied", EACCES},
    {"not-retained", EPERM},
    {"in-use", EADDRINUSE},
    {"not-local", EADDRNOTAVAIL},
    {"unknown-interface", ENODEV},
    {"tentative", EAGAIN},
    {"conflict", EEXIST},
    {"quota", EDQUOT},
    {"malformed", EBADMSG},
    {"unsupported", EOPNOTSUPP},
    {"busy", EBUSY},
    {"expired", ESTALE},
    {"os", EIO},
    {"not-found", ENOENT},
    {"invalid", EINVAL},
};

#define FAULT_COUNT (sizeof FAULTS / sizeof FAULTS[0])

const char *portreeve_fault_name(unsigned fault) {
    return FAULTS[fault < FAULT_COUNT ? fault : 0].name;
}

static int fault_number(unsigned fault, uint32_t os_error) {
    if (fault == PORTREEVE_OS && os_error > 0 && os_error < 4096)
        return (int)os_error;
    return FAULTS[fault < FAULT_COUNT ? fault : 0].number;
}

/* ---- Text ---- */

/* The length of the UTF-8 character at `at`, which has `left` bytes after it, and its code point; 0 if it is invalid. */
static size_t utf8_character(const unsigned char *at, size_t left, uint32_t *point) {
    static const uint32_t LEAST[] = {0, 0, 0x80, 0x800, 0x10000};
    size_t length, i;

    if (at[0] < 0x80) {
        *point = at[0];
        return 1;
    }
    if (at[0] >= 0xf0 && at[0] <= 0xf4)
        length = 4;
    else if (at[0] >= 0xe0 && at[0] < 0xf0)
        length = 3;
    else if (at[0] >= 0xc0 && at[0] < 0xe0)
        length = 2;
    else
        return 0;
    if (length > left)
        return 0;
    *point = at[0] & (0x7fu >> length);
    for (i = 1; i < length; i++) {
        if ((at[i] & 0xc0) != 0x80)
            return 0;
        *point = *point << 6 | (at[i] & 0x3fu);
    }
    if (*point < LEAST[length] || *point > 0x10ffff || (*point >= 0xd800 && *point <= 0xdfff))
        return 0;
    return length;
}

static bool is_utf8(const char *text, size_t length) {
    const unsigned char *at = (const unsigned char *)text;
    uint32_t point;
    size_t step;

    for (; length > 0; at += step, length -= step) {
        step = utf8_character(at, length, &point);
        if (step == 0)
            return false;
    }
    return true;
}

/* Control characters, separators of lines, and characters that change the direction of text. */
static bool is_control(uint32_t point) {
    return point < 0x20 || (point >= 0x7f && point < 0xa0) || point == 0x61c || (point >= 0x200b && point <= 0x200f) ||
           (point >= 0x2028 && point <= 0x202e) || (point >= 0x2060 && point <= 0x206f) || point == 0xfeff;
}

/* ---- Encoding ---- */

struct writer {
    unsigned char *at;
    size_t left;
    bool full;
};

static void put_bytes(struct writer *to, const void *from, size_t length) {
    if (length > to->left) {
        to->full = true;
        return;
    }
    if (length > 0)
        memcpy(to->at, from, length);
    to->at += length;
    to->left -= length;
}

static void put_integer(struct writer *to, uint64_t value, size_t bytes) {
    unsigned char little[8];
    size_t i;

    for (i = 0; i < bytes; i++)
        little[i] = (unsigned char)(value >> (8 * i));
    put_bytes(to, little, bytes);
}

static void put_u8(struct writer *to, unsigned value) {
    put_integer(to, value, 1);
}

static void put_u16(struct writer *to, unsigned value) {
    put_integer(to, value, 2);
}

static void put_u32(struct writer *to, uint32_t value) {
    put_integer(to, value, 4);
}

static void put_u64(struct writer *to, uint64_t value) {
    put_integer(to, value, 8);
}

static void put_text(struct writer *to, const char *text, size_t length) {
    put_u64(to, length);
    put_bytes(to, text, length);
}

static void put_option_u32(struct writer *to, bool present, uint32_t value) {
    put_u8(to, present);
    if (present)
        put_u32(to, value);
}

static struct writer body_of(struct portreeve *session) {
    struct writer to = {session->outgoing + HEADER_SIZE, MAX_BODY, false};
    return to;
}

/* ---- Decoding ---- */

struct reader {
    const unsigned char *at;
    size_t left;
    bool bad;
};

static uint64_t get_integer(struct reader *from, size_t bytes) {
    uint64_t value = 0;
    size_t i;

    if (from->bad || bytes > from->left) {
        from->bad = true;
        return 0;
    }
    for (i = 0; i < bytes; i++)
        value |= (uint64_t)from->at[i] << (8 * i);
    from->at += bytes;
    from->left -= bytes;
    return value;
}

static unsigned get_u8(struct reader *from) {
    return (unsigned)get_integer(from, 1);
}

static unsigned get_u16(struct reader *from) {
    return (unsigned)get_integer(from, 2);
}

static uint32_t get_u32(struct reader *from) {
    return (uint32_t)get_integer(from, 4);
}

static uint64_t get_u64(struct reader *from) {
    return get_integer(from, 8);
}

static bool get_bool(struct reader *from) {
    unsigned value = get_u8(from);

    if (value > 1)
        from->bad = true;
    return value == 1;
}

/* The number of items of a list, which has at most `most`. */
static size_t get_count(struct reader *from, size_t most) {
    uint64_t count = get_u64(from);

    if (count > most) {
        from->bad = true;
        return 0;
    }
    return (size_t)count;
}

/* Copies a text of less than `size` bytes, and replaces its control characters. */
static void get_text(struct reader *from, char *to, size_t size) {
    size_t length = get_count(from, size - 1), step, used = 0;
    uint32_t point;

    to[0] = '\0';
    if (from->bad || length > from->left) {
        from->bad = true;
        return;
    }
    from->left -= length;
    for (; length > 0; from->at += step, length -= step) {
        step = utf8_character(from->at, length, &point);
        if (step == 0) {
            from->bad = true;
            break;
        }
        if (is_control(point)) {
            to[used++] = '?';
        } else {
            memcpy(to + used, from->at, step);
            used += step;
        }
    }
    to[used] = '\0';
}

static void get_address(struct reader *from, char *to) {
    uint32_t tag = get_u32(from);
    size_t length = tag == 0 ? 4 : 16;

    to[0] = '\0';
    if (from->bad || tag > 1 || length > from->left) {
        from->bad = true;
        return;
    }
    if (inet_ntop(tag == 0 ? AF_INET : AF_INET6, from->at, to, PORTREEVE_ADDRESS_SIZE) == NULL)
        from->bad = true;
    from->at += length;
    from->left -= length;
}

static void get_option_address(struct reader *from, char *to) {
    to[0] = '\0';
    if (get_bool(from))
        get_address(from, to);
}

static void get_fault(struct reader *from, struct portreeve_error *fault) {
    uint32_t os_error;

    memset(fault, 0, sizeof *fault);
    fault->fault = get_u16(from);
    os_error = get_u32(from);
    get_text(from, fault->subject, sizeof fault->subject);
    get_text(from, fault->message, sizeof fault->message);
    get_text(from, fault->remedy, sizeof fault->remedy);
    fault->number = fault_number(fault->fault, os_error);
}

static bool is_decoded(const struct reader *from) {
    return !from->bad && from->left == 0;
}

/* ---- Descriptors and time ---- */

static void close_descriptor(int descriptor) {
    (void)close(descriptor); /* a socket is closed even if close(2) reports an error */
}

static void close_all(struct frame *frame) {
    size_t i;

    for (i = 0; i < frame->descriptor_count; i++)
        close_descriptor(frame->descriptors[i]);
    frame->descriptor_count = 0;
}

static int64_t now_ms(void) {
    struct timespec now;

    (void)clock_gettime(CLOCK_MONOTONIC, &now); /* every Linux has this clock */
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* The end of a wait; negative if it has none. */
static int64_t deadline_after(int timeout) {
    return timeout < 0 ? -1 : now_ms() + timeout;
}

/* The milliseconds until then, for poll(2). */
static int remaining(int64_t deadline) {
    int64_t left;

    if (deadline < 0)
        return -1;
    left = deadline - now_ms();
    return left < 0 ? 0 : left > INT_MAX ? INT_MAX : (int)left;
}

/* Waits for events on the channel. Returns the events, or 0 at the deadline. */
static int wait_for(int channel, short events, int64_t deadline) {
    struct pollfd ready;
    int count;

    for (;;) {
        ready.fd = channel;
        ready.events = events;
        ready.revents = 0;
        count = poll(&ready, 1, remaining(deadline));
        if (count > 0)
            return ready.revents;
        if (count == 0)
            return 0;
        if (errno != EINTR)
            return POLLERR; /* the next call on the channel reports the cause */
    }
}

/* ---- The channel ---- */

/* Ends the session, and makes every later call fail with this reason. */
static int end_session(struct portreeve *session, const struct portreeve_error *why) {
    if (session->end.number == 0) {
        session->end = *why;
        session->end.ended = true;
        (void)shutdown(session->channel, SHUT_RDWR); /* it fails only if the broker has closed its end */
    }
    return -session->end.number;
}

static int end_with(struct portreeve *session, int number, const char *remedy, const char *message) {
    struct portreeve_error why;

    (void)fail(&why, number, remedy, "%s", message);
    return end_session(session, &why);
}

static int violated(struct portreeve *session, const char *what) {
    struct portreeve_error why;

    (void)fail(&why, EPROTO, "Install the same release of the broker and of this program",
               "the broker violated the protocol: %s", what);
    return end_session(session, &why);
}

static int closed_by_broker(struct portreeve *session) {
    return end_with(session, ECONNRESET, "Connect again, and request the same listeners",
                    "the broker closed the session. Sockets received from it remain usable");
}

/* Takes all descriptors of a control message. More than fit cannot be there: the control buffer has no room for them. */
static void take_descriptors(struct msghdr *message, struct frame *frame) {
    struct cmsghdr *part;
    size_t count, i;
    int descriptor;

    for (part = CMSG_FIRSTHDR(message); part != NULL; part = CMSG_NXTHDR(message, part)) {
        if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS || part->cmsg_len < CMSG_LEN(0))
            continue;
        count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (i = 0; i < count; i++) {
            memcpy(&descriptor, CMSG_DATA(part) + i * sizeof(int), sizeof descriptor);
            if (frame->descriptor_count < MAX_DESCRIPTORS)
                frame->descriptors[frame->descriptor_count++] = descriptor;
            else
                close_descriptor(descriptor);
        }
    }
}

static int decode_header(struct portreeve *session, size_t length, struct frame *frame) {
    struct reader from = {session->incoming, length, false};
    unsigned version, body, declared, reserved;
    char message[160];

    if (length < HEADER_SIZE)
        return violated(session, "a frame is shorter than its header");
    if (memcmp(from.at, "PRTV", 4) != 0)
        return violated(session, "a frame does not begin with PRTV");
    (void)get_u32(&from);
    version = get_u16(&from);
    if (version != PROTOCOL_VERSION) {
        snprintf(message, sizeof message, "the broker speaks protocol version %u, this program version %d", version,
                 PROTOCOL_VERSION);
        return end_with(session, EPROTONOSUPPORT, "Install the same release of both", message);
    }
    frame->kind = get_u16(&from);
    frame->request = get_u32(&from);
    body = get_u16(&from);
    declared = get_u8(&from);
    reserved = get_u8(&from);
    if (body != from.left || reserved != 0 || declared > MAX_DESCRIPTORS)
        return violated(session, "the header of a frame is invalid");
    if (frame->descriptors_lost ? declared == 0 : declared != frame->descriptor_count)
        return violated(session, "a frame has another number of descriptors than it declares");
    frame->body = from.at;
    frame->length = from.left;
    return 0;
}

/*
 * Receives one frame without waiting. Returns 1, 0 if none has arrived, or a negative number if the session has ended. The
 * caller closes the descriptors.
 */
static int receive_now(struct portreeve *session, struct frame *frame) {
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(MAX_DESCRIPTORS * sizeof(int))];
    } control;
    struct iovec data;
    struct msghdr message;
    bool was_reset = false;
    ssize_t length;
    int result;

    memset(frame, 0, sizeof *frame);
    for (;;) {
        memset(&message, 0, sizeof message);
        data.iov_base = session->incoming;
        data.iov_len = sizeof session->incoming;
        message.msg_iov = &data;
        message.msg_iovlen = 1;
        message.msg_control = control.bytes;
        message.msg_controllen = sizeof control.bytes;
        length = recvmsg(session->channel, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
        if (length >= 0)
            break;
        if (errno == EAGAIN || errno == EWOULDBLOCK)
            return 0;
        if (errno == EINTR)
            continue;
        /* The broker closed with unread requests. Frames from before are still queued: see unix(7). */
        if (errno == ECONNRESET && !was_reset) {
            was_reset = true;
            continue;
        }
        if (errno == ECONNRESET)
            return closed_by_broker(session);
        return end_with(session, errno, "See recvmsg(2)", "cannot receive from the broker");
    }
    take_descriptors(&message, frame);
    if (length == 0) {
        close_all(frame);
        return closed_by_broker(session);
    }
    if (message.msg_flags & MSG_CTRUNC) {
        close_all(frame);
        frame->descriptors_lost = true;
    }
    result = message.msg_flags & MSG_TRUNC ? violated(session, "a packet is longer than the longest frame")
                                           : decode_header(session, (size_t)length, frame);
    if (result < 0)
        close_all(frame);
    return result < 0 ? result : 1;
}

static struct portreeve_event *queue_slot(struct portreeve *session) {
    return &session->queue[(session->queue_first + session->queue_count++) % QUEUE_LENGTH];
}

static void queue_gap(struct portreeve *session) {
    struct portreeve_event *gap = queue_slot(session);

    memset(gap, 0, sizeof *gap);
    gap->code = PORTREEVE_GAP;
    gap->count = session->missed;
    session->missed = 0;
}

static void queue_event(struct portreeve *session, const struct portreeve_event *event) {
    size_t free_slots = QUEUE_LENGTH - session->queue_count;

    if (free_slots < (session->missed > 0 ? 2u : 1u)) {
        session->missed++;
        return;
    }
    if (session->missed > 0)
        queue_gap(session);
    *queue_slot(session) = *event;
}

static void get_event(struct reader *from, struct portreeve_event *event) {
    memset(event, 0, sizeof *event);
    event->number = get_u64(from);
    event->time_ms = get_u64(from);
    event->code = get_u16(from);
    get_option_address(from, event->address);
    get_text(from, event->interface, sizeof event->interface);
    event->index = get_u32(from);
    event->pid = get_u32(from);
    event->epoch = get_u64(from);
    event->count = get_u64(from);
    get_text(from, event->detail, sizeof event->detail);
}

/* Handles a frame without a request: an event, the fault that ends the session, or a frame of a later release. */
static int take_unrequested(struct portreeve *session, const struct frame *frame) {
    struct reader from = {frame->body, frame->length, false};
    struct portreeve_error fault;
    struct portreeve_event event;

    if (frame->kind == KIND_FAULT) {
        get_fault(&from, &fault);
        return is_decoded(&from) ? end_session(session, &fault) : violated(session, "a fault is invalid");
    }
    if (frame->kind == KIND_EVENT) {
        get_event(&from, &event);
        if (!is_decoded(&from))
            return violated(session, "an event is invalid");
        queue_event(session, &event);
    }
    return 0;
}

/* Handles a frame that no call waits for. Its descriptors are closed. */
static int take_unexpected(struct portreeve *session, struct frame *frame) {
    uint32_t age = session->last_request - frame->request;

    close_all(frame);
    if (frame->request == 0)
        return take_unrequested(session, frame);
    if (age >= 64 || !(session->unanswered >> age & 1))
        return violated(session, "it replied to a request that was not sent, or twice");
    session->unanswered &= ~((uint64_t)1 << age);
    return 0;
}

/* The fault of the broker that ended the session can still be queued after a failed send. */
static int receive_end(struct portreeve *session) {
    struct frame frame;
    int result;

    while ((result = receive_now(session, &frame)) > 0) {
        result = take_unexpected(session, &frame);
        if (result < 0)
            return result;
    }
    return result < 0 ? result : closed_by_broker(session);
}

/* Sends the outgoing frame. Returns 0, a negative number if the session has ended, or -ETIMEDOUT. */
static int send_frame(struct portreeve *session, size_t length, int64_t deadline) {
    struct frame frame;
    ssize_t sent;
    int ready, result;

    for (;;) {
        sent = send(session->channel, session->outgoing, length, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent >= 0)
            return 0;
        if (errno == EINTR)
            continue;
        if (errno == EPIPE || errno == ECONNRESET || errno == ENOTCONN)
            return receive_end(session);
        if (errno != EAGAIN && errno != EWOULDBLOCK)
            return end_with(session, errno, "See send(2)", "cannot send a request to the broker");
        /* The broker may wait until this process has received its events and late replies. */
        ready = wait_for(session->channel, POLLIN | POLLOUT, deadline);
        if (ready == 0)
            return -ETIMEDOUT;
        if (ready & ~POLLOUT) {
            result = receive_now(session, &frame);
            if (result > 0)
                result = take_unexpected(session, &frame);
            if (result < 0)
                return result;
        }
        if (remaining(deadline) == 0)
            return -ETIMEDOUT;
    }
}

/* Receives frames until the reply to the last request. */
static int receive_reply(struct portreeve *session, unsigned operation, struct frame *reply, int64_t deadline) {
    int result;

    for (;;) {
        result = receive_now(session, reply);
        if (result < 0)
            return result;
        if (result == 0) {
            if (wait_for(session->channel, POLLIN, deadline) == 0)
                return -ETIMEDOUT;
            continue;
        }
        if (reply->request == session->last_request) {
            if (reply->kind == KIND_FAULT || reply->kind == (operation | KIND_REPLY))
                return 0;
            close_all(reply);
            return violated(session, "a reply has another kind than its request");
        }
        result = take_unexpected(session, reply);
        if (result < 0)
            return result;
        if (remaining(deadline) == 0) /* also while events arrive without end */
            return -ETIMEDOUT;
    }
}

static int timed_out(struct portreeve_error *error, const char *what) {
    return fail(error, ETIMEDOUT, "Check that the broker runs and that this host is not overloaded, then repeat the request",
                "%s within the time limit", what);
}

static int check_session(struct portreeve *session, struct portreeve_error *error) {
    if (session == NULL)
        return fail(error, EINVAL, "Open a session first", "the session is NULL");
    if (session->process != getpid())
        return fail(error, ECHILD, "Open a session in each process", "another process opened this session");
    return 0;
}

/*
 * Sends the body that `to` has written after the header, and waits for the reply. On success the caller decodes the reply and
 * uses or closes its descriptors.
 */
static int call(struct portreeve *session, unsigned operation, const struct writer *to, struct frame *reply,
                struct portreeve_error *error) {
    size_t length = MAX_BODY - to->left;
    struct writer header = {session->outgoing, HEADER_SIZE, false};
    struct portreeve_error fault;
    struct reader from;
    uint32_t number;
    int64_t deadline = deadline_after(session->timeout);
    int result;

    if (to->full)
        return fail(error, E2BIG, "Send requests with fewer items", "the request does not fit in a frame");
    if (session->end.number != 0)
        return fail_with(error, &session->end);
    /* The broker does not reply to request 0. Ages of requests are not counted across it. */
    number = session->last_request == UINT32_MAX ? 1 : session->last_request + 1;
    if (session->unanswered >> 63 != 0 || (number == 1 && session->unanswered != 0))
        return fail(error, EBUSY, "Connect again", "too many earlier requests still have no reply");
    put_bytes(&header, "PRTV", 4);
    put_u16(&header, PROTOCOL_VERSION);
    put_u16(&header, operation);
    put_u32(&header, number);
    put_u16(&header, (unsigned)length);
    put_u16(&header, 0); /* descriptors and the reserved byte */

    result = send_frame(session, HEADER_SIZE + length, deadline);
    if (result < 0)
        return session->end.number != 0 ? fail_with(error, &session->end)
                                        : timed_out(error, "cannot send a request to the broker");
    session->last_request = number;
    session->unanswered <<= 1;
    result = receive_reply(session, operation, reply, deadline);
    if (result < 0 && session->end.number == 0) {
        session->unanswered |= 1;
        return timed_out(error, "the broker did not reply");
    }
    if (result < 0)
        return fail_with(error, &session->end);
    if (reply->kind != KIND_FAULT)
        return 0;
    close_all(reply);
    from.at = reply->body;
    from.left = reply->length;
    from.bad = false;
    get_fault(&from, &fault);
    if (!is_decoded(&from)) {
        (void)violated(session, "a fault is invalid");
        return fail_with(error, &session->end);
    }
    return fail_with(error, &fault);
}

/* Ends the session because a reply is invalid. */
static int invalid_reply(struct portreeve *session, struct frame *reply, struct portreeve_error *error) {
    close_all(reply);
    (void)violated(session, "a reply is invalid");
    return fail_with(error, &session->end);
}

static struct reader body(const struct frame *reply) {
    struct reader from = {reply->body, reply->length, false};
    return from;
}

/* A reply without descriptors was decoded. */
static bool is_whole(const struct reader *from, const struct frame *reply) {
    return is_decoded(from) && reply->descriptor_count == 0 && !reply->descriptors_lost;
}

/* ---- Sessions ---- */

static int check_text(const char *what, const char *text, size_t most, struct portreeve_error *error) {
    size_t length;

    if (text == NULL)
        return fail(error, EINVAL, "", "%s is NULL", what);
    length = strlen(text);
    if (length > most)
        return fail(error, ENAMETOOLONG, "", "%s has %zu bytes, and at most %zu are allowed", what, length, most);
    if (!is_utf8(text, length))
        return fail(error, EILSEQ, "", "%s is not UTF-8", what);
    return 0;
}

static void put_hello(struct writer *to, const char *name, uint64_t features) {
    put_text(to, name, strlen(name));
    put_u64(to, features);
}

static void get_welcome(struct reader *from, struct portreeve_welcome *welcome) {
    size_t i;

    memset(welcome, 0, sizeof *welcome);
    welcome->broker = get_u32(from);
    get_text(from, welcome->release, sizeof welcome->release);
    welcome->features = get_u64(from);
    welcome->capabilities = get_u64(from);
    get_text(from, welcome->peer, sizeof welcome->peer);
    welcome->operation_count = get_count(from, 32);
    for (i = 0; i < welcome->operation_count; i++)
        get_text(from, welcome->operations[i], sizeof welcome->operations[i]);
}

static int hello(struct portreeve *session, const char *name, uint64_t features, struct portreeve_error *error) {
    struct writer to = body_of(session);
    struct frame reply;
    struct reader from;
    int result;

    put_hello(&to, name, features);
    result = call(session, OP_HELLO, &to, &reply, error);
    if (result < 0)
        return result;
    from = body(&reply);
    get_welcome(&from, &session->welcome);
    if (!is_whole(&from, &reply) || (session->welcome.features & ~features) != 0)
        return invalid_reply(session, &reply, error);
    return 0;
}

static int new_session(struct portreeve **session, int channel, int timeout, struct portreeve_error *error) {
    *session = calloc(1, sizeof **session);
    if (*session == NULL)
        return fail(error, ENOMEM, "", "there is no memory for a session with the broker");
    (*session)->channel = channel;
    (*session)->process = getpid();
    (*session)->timeout = timeout;
    return 0;
}

int portreeve_open(struct portreeve **session, int channel, const char *name, int timeout, struct portreeve_error *error) {
    struct portreeve *opened = NULL;
    int result;

    if (session == NULL)
        return fail(error, EINVAL, "", "the place for the session is NULL");
    *session = NULL;
    result = check_text("the name of the client", name, 64, error);
    if (result == 0)
        result = new_session(&opened, channel, timeout, error);
    if (result < 0)
        return result;
    result = hello(opened, name, FEATURE_LEASE_TIMES, error);
    if (result < 0) {
        free(opened);
        return result;
    }
    *session = opened;
    return 0;
}

static const char *connect_remedy(int number) {
    switch (number) {
    case ENOENT:
    case ECONNREFUSED:
        return "Start portreeved, or name the control socket of its configuration";
    case EACCES:
    case EPERM:
        return "Run as a user or group that may write to the control socket: see socket_mode and socket_group in "
               "portreeve.conf(5)";
    case EPROTOTYPE:
        return "This socket belongs to another program. Name the control socket of the broker";
    case ETIMEDOUT:
        return "Check that the broker runs and that this host is not overloaded, then try again";
    default:
        return "See connect(2)";
    }
}

/* Connects, and waits while the queue of the control socket is full: then a non-blocking connect(2) fails with EAGAIN. */
static int connect_within(int channel, const struct sockaddr_un *address, int64_t deadline) {
    int pause = FIRST_PAUSE_MS, left;

    for (;;) {
        if (connect(channel, (const struct sockaddr *)address, sizeof *address) == 0)
            return 0;
        if (errno == EINTR)
            continue;
        if (errno != EAGAIN)
            return errno;
        left = remaining(deadline);
        if (left == 0)
            return ETIMEDOUT;
        (void)poll(NULL, 0, left > 0 && left < pause ? left : pause); /* an early return is harmless */
        pause = pause * 2 > MAX_PAUSE_MS ? MAX_PAUSE_MS : pause * 2;
    }
}

int portreeve_connect(struct portreeve **session, const char *path, const char *name, int timeout,
                      struct portreeve_error *error) {
    struct sockaddr_un address;
    int channel, number, result;

    if (session == NULL)
        return fail(error, EINVAL, "", "the place for the session is NULL");
    *session = NULL;
    result = check_text("the name of the client", name, 64, error);
    if (result == 0)
        result = check_text("the path of the control socket", path, MAX_PATH_LENGTH, error);
    if (result < 0)
        return result;
    memset(&address, 0, sizeof address);
    address.sun_family = AF_UNIX;
    memcpy(address.sun_path, path, strlen(path));
    channel = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (channel < 0) {
        number = errno;
        return fail(error, number, "See socket(2)", "cannot create a socket: %s", strerror(number));
    }
    number = connect_within(channel, &address, deadline_after(timeout));
    if (number == 0)
        result = portreeve_open(session, channel, name, timeout, error);
    else
        result = fail(error, number, connect_remedy(number), "cannot connect to the broker at %s: %s", path,
                      strerror(number));
    if (result < 0)
        close_descriptor(channel);
    return result;
}

/* Parses a decimal number from 0 to `most`; -1 if the text is none. */
static long parse_number(const char *text, long most) {
    long number = 0;

    if (*text == '\0')
        return -1;
    for (; *text != '\0'; text++) {
        if (*text < '0' || *text > '9')
            return -1;
        number = number * 10 + (*text - '0');
        if (number > most)
            return -1;
    }
    return number;
}

static bool is_channel(int descriptor) {
    int type = 0, domain = 0;
    socklen_t size = sizeof type;

    if (getsockopt(descriptor, SOL_SOCKET, SO_TYPE, &type, &size) < 0)
        return false;
    size = sizeof domain;
    return getsockopt(descriptor, SOL_SOCKET, SO_DOMAIN, &domain, &size) == 0 && type == SOCK_SEQPACKET &&
           domain == AF_UNIX;
}

int portreeve_inherit(struct portreeve **session, const char *name, int timeout, struct portreeve_error *error) {
    static const char *const REMEDY = "Start this program as the broker's worker";
    const char *value = getenv("PORTREEVE_CHANNEL");
    int channel, flags, result;

    if (session == NULL)
        return fail(error, EINVAL, "", "the place for the session is NULL");
    *session = NULL;
    if (value == NULL)
        return fail(error, ENOENT, "Start this program as the broker's worker, or connect to the control socket",
                    "cannot find the channel to the broker: PORTREEVE_CHANNEL is not set");
    channel = (int)parse_number(value, INT_MAX);
    if (channel < 0)
        return fail(error, EINVAL, REMEDY, "PORTREEVE_CHANNEL is not the number of a descriptor");
    /* A descriptor that survived execve(2) is not close-on-exec; one that was taken before is. */
    flags = fcntl(channel, F_GETFD);
    if (flags < 0 || flags & FD_CLOEXEC)
        return fail(error, EBADF, REMEDY, "descriptor %d was not inherited, or was taken before", channel);
    if (!is_channel(channel))
        return fail(error, ENOTSOCK, REMEDY, "descriptor %d is not a sequenced-packet Unix socket", channel);
    /* Every process that has the channel can act as the worker. */
    if (fcntl(channel, F_SETFD, flags | FD_CLOEXEC) < 0)
        return fail(error, errno, REMEDY, "cannot set the close-on-exec flag of descriptor %d", channel);
    result = portreeve_open(session, channel, name, timeout, error);
    if (result < 0)
        close_descriptor(channel);
    return result;
}

void portreeve_close(struct portreeve *session) {
    if (session == NULL)
        return;
    /* The shutdown ends the session even if a child process has a copy of the channel. */
    if (session->process == getpid())
        (void)shutdown(session->channel, SHUT_RDWR); /* it fails only if the broker has closed its end */
    close_descriptor(session->channel);
    free(session);
}

int portreeve_channel(const struct portreeve *session) {
    return session->channel;
}

void portreeve_set_timeout(struct portreeve *session, int timeout) {
    session->timeout = timeout;
}

const struct portreeve_welcome *portreeve_welcome(const struct portreeve *session) {
    return &session->welcome;
}

bool portreeve_allows(const struct portreeve *session, const char *operation) {
    size_t i;

    for (i = 0; i < session->welcome.operation_count; i++)
        if (strcmp(session->welcome.operations[i], operation) == 0)
            return true;
    return false;
}

int portreeve_ping(struct portreeve *session, struct portreeve_error *error) {
    struct writer to;
    struct frame reply;
    struct reader from;
    int result = check_session(session, error);

    if (result < 0)
        return result;
    to = body_of(session);
    result = call(session, OP_PING, &to, &reply, error);
    if (result < 0)
        return result;
    from = body(&reply);
    return is_whole(&from, &reply) ? 0 : invalid_reply(session, &reply, error);
}

/* ---- Listeners ---- */

static int invalid_endpoint(struct portreeve_error *error, const char *endpoint) {
    return fail(error, EINVAL, "Write ADDRESS:PORT, [IPV6]:PORT or *:PORT, optionally with /udp, or the path of a Unix socket",
                "\"%.128s\" is not an endpoint", endpoint);
}

static int put_path(struct writer *to, uint32_t tag, const char *path, struct portreeve_error *error) {
    int result = check_text("the path of a Unix socket", path, MAX_PATH_LENGTH, error);

    if (result < 0)
        return result;
    put_u32(to, tag);
    put_text(to, path, strlen(path));
    return 0;
}

/* Encodes an address of inet_pton(3). The broker refuses IPv4-mapped addresses. */
static bool put_parsed_address(struct writer *to, int family, const char *text) {
    unsigned char bytes[16];

    if (inet_pton(family, text, bytes) != 1 ||
        (family == AF_INET6 && memcmp(bytes, "\0\0\0\0\0\0\0\0\0\0\377\377", 12) == 0))
        return false;
    put_u32(to, family == AF_INET ? 0 : 1);
    put_bytes(to, bytes, family == AF_INET ? 4 : 16);
    return true;
}

static bool is_interface(const char *name) {
    size_t length = strlen(name), i;

    for (i = 0; i < length; i++)
        if (name[i] <= ' ' || name[i] > '~' || name[i] == '/')
            return false;
    return length > 0 && length < PORTREEVE_INTERFACE_SIZE;
}

static int put_endpoint(struct writer *to, const char *endpoint, struct portreeve_error *error) {
    static const char SEQPACKET[] = "seqpacket:";
    char copy[128], *transport, *port, *address, *interface = NULL;
    size_t length;
    uint32_t tag = 0;
    long number;

    if (endpoint == NULL)
        return fail(error, EINVAL, "", "the endpoint is NULL");
    if (strncmp(endpoint, SEQPACKET, sizeof SEQPACKET - 1) == 0)
        return put_path(to, 3, endpoint + sizeof SEQPACKET - 1, error);
    if (endpoint[0] == '/')
        return put_path(to, 2, endpoint, error);
    length = strlen(endpoint);
    if (length >= sizeof copy)
        return invalid_endpoint(error, endpoint);
    memcpy(copy, endpoint, length + 1);

    transport = strchr(copy, '/');
    if (transport != NULL) {
        *transport++ = '\0';
        if (strcmp(transport, "udp") == 0)
            tag = 1;
        else if (strcmp(transport, "tcp") != 0)
            return invalid_endpoint(error, endpoint);
    }
    port = strrchr(copy, ':');
    if (port == NULL)
        return invalid_endpoint(error, endpoint);
    *port++ = '\0';
    number = parse_number(port, 65535);
    if (number <= 0)
        return invalid_endpoint(error, endpoint);

    put_u32(to, tag);
    address = copy;
    length = strlen(address);
    if (length >= 2 && address[0] == '[' && address[length - 1] == ']') {
        address[length - 1] = '\0';
        address++;
        interface = strchr(address, '%');
        if (interface != NULL) {
            *interface++ = '\0';
            if (!is_interface(interface))
                return invalid_endpoint(error, endpoint);
        }
        if (!put_parsed_address(to, AF_INET6, strcmp(address, "*") == 0 ? "::" : address))
            return invalid_endpoint(error, endpoint);
    } else if (!put_parsed_address(to, AF_INET,
                                   strcmp(address, "*") == 0 || address[0] == '\0' ? "0.0.0.0" : address)) {
        return invalid_endpoint(error, endpoint);
    }
    put_u16(to, (unsigned)number);
    put_text(to, interface == NULL ? "" : interface, interface == NULL ? 0 : strlen(interface));
    return 0;
}

static int put_listen_options(struct writer *to, const struct portreeve_listen_options *options,
                              struct portreeve_error *error) {
    static const struct portreeve_listen_options DEFAULTS;
    const char *device;

    if (options == NULL)
        options = &DEFAULTS;
    device = options->device == NULL ? "" : options->device;
    if (device[0] != '\0' && !is_interface(device))
        return fail(error, EINVAL, "", "\"%.64s\" is not the name of an interface", device);
    put_option_u32(to, options->present & PORTREEVE_HAS_BACKLOG, options->backlog);
    put_u8(to, options->reuse_port);
    put_u8(to, options->dual_stack);
    put_u8(to, options->free_bind);
    put_text(to, device, strlen(device));
    put_option_u32(to, options->present & PORTREEVE_HAS_RECEIVE_BUFFER, options->receive_buffer);
    put_option_u32(to, options->present & PORTREEVE_HAS_SEND_BUFFER, options->send_buffer);
    put_u8(to, (options->present & PORTREEVE_HAS_NO_DELAY) != 0);
    if (options->present & PORTREEVE_HAS_NO_DELAY)
        put_u8(to, options->no_delay);
    put_u32(to, options->defer_accept);
    put_u32(to, options->fast_open);
    put_option_u32(to, options->present & PORTREEVE_HAS_MODE, options->mode);
    return 0;
}

/* A `Listen`: alone it is a whole request, and the item of a `ListenMany`. */
static int put_listen(struct writer *to, const char *endpoint, const struct portreeve_listen_options *options,
                      struct portreeve_error *error) {
    int result = put_endpoint(to, endpoint, error);

    return result < 0 ? result : put_listen_options(to, options, error);
}

static int no_descriptors(struct portreeve_error *error) {
    return fail(error, EMFILE,
                "Close descriptors or raise the limit of open files (RLIMIT_NOFILE), then repeat the request",
                "cannot receive the sockets of a reply: this process has no free file descriptors");
}

int portreeve_listen(struct portreeve *session, const char *endpoint, const struct portreeve_listen_options *options,
                     uint64_t *id, struct portreeve_error *error) {
    struct writer to;
    struct frame reply;
    struct reader from;
    uint64_t number;
    int result = check_session(session, error);

    if (result < 0)
        return result;
    to = body_of(session);
    result = put_listen(&to, endpoint, options, error);
    if (result == 0)
        result = call(session, OP_LISTEN, &to, &reply, error);
    if (result < 0)
        return result;
    from = body(&reply);
    number = get_u64(&from);
    if (!is_decoded(&from) || number == 0)
        return invalid_reply(session, &reply, error);
    if (reply.descriptors_lost)
        return no_descriptors(error);
    if (reply.descriptor_count != 1)
        return invalid_reply(session, &reply, error);
    if (id != NULL)
        *id = number;
    return reply.descriptors[0];
}

/* Decodes the results, and gives each open listener its descriptor. Returns false if the reply is invalid. */
static bool get_listeners(struct reader *from, const struct frame *reply, struct portreeve_listener *results, size_t count) {
    size_t used = 0, i;
    uint32_t tag;

    if (get_count(from, PORTREEVE_MAX_LISTENERS) != count)
        return false;
    for (i = 0; i < count; i++) {
        tag = get_u32(from);
        if (tag == 1) {
            get_fault(from, &results[i].error);
            continue;
        }
        results[i].id = get_u64(from);
        if (tag != 0 || results[i].id == 0)
            return false;
        if (reply->descriptors_lost) {
            (void)no_descriptors(&results[i].error);
            results[i].id = 0;
            continue;
        }
        if (used == reply->descriptor_count)
            return false;
        results[i].socket = reply->descriptors[used++];
    }
    return is_decoded(from) && used == reply->descriptor_count;
}

static void fail_all(struct portreeve_listener *results, size_t count, const struct portreeve_error *why) {
    size_t i;

    for (i = 0; i < count; i++) {
        results[i].socket = -1;
        results[i].id = 0;
        results[i].error = *why;
    }
}

int portreeve_listen_many(struct portreeve *session, const struct portreeve_listen_request *requests, size_t count,
                          bool all_or_nothing, struct portreeve_listener *results, struct portreeve_error *error) {
    struct portreeve_error why;
    struct writer to;
    struct frame reply;
    struct reader from;
    size_t i;
    int result;

    memset(&why, 0, sizeof why);
    if (count > 0)
        fail_all(results, count, &why);
    result = check_session(session, &why);
    if (result == 0 && count > PORTREEVE_MAX_LISTENERS)
        result = fail(&why, E2BIG, "Send requests with fewer items", "a request has at most %d listeners",
                      PORTREEVE_MAX_LISTENERS);
    if (result == 0) {
        to = body_of(session);
        put_u8(&to, all_or_nothing);
        put_u64(&to, count);
        for (i = 0; i < count && result == 0; i++)
            result = put_listen(&to, requests[i].endpoint, requests[i].options, &why);
    }
    if (result == 0)
        result = call(session, OP_LISTEN_MANY, &to, &reply, &why);
    if (result == 0) {
        from = body(&reply);
        if (!get_listeners(&from, &reply, results, count))
            result = invalid_reply(session, &reply, &why);
    }
    if (result < 0) {
        fail_all(results, count, &why);
        return fail_with(error, &why);
    }
    for (i = 0; i < count; i++)
        if (results[i].error.number != 0)
            return fail_with(error, &results[i].error);
    return 0;
}

/* Decodes a list of numbers that the request had. */
static void get_stopped(struct reader *from, uint64_t *numbers, size_t *found, const uint64_t *ids, size_t count) {
    size_t length = get_count(from, PORTREEVE_MAX_LISTENERS), i, at;

    *found = 0;
    for (i = 0; i < length && !from->bad; i++) {
        numbers[i] = get_u64(from);
        for (at = 0; at < count && ids[at] != numbers[i]; at++)
            ;
        if (at == count)
            from->bad = true;
    }
    if (!from->bad)
        *found = length;
}

int portreeve_stop(struct portreeve *session, const uint64_t *ids, size_t count, struct portreeve_stopped *stopped,
                   struct portreeve_error *error) {
    struct portreeve_stopped unused;
    struct writer to;
    struct frame reply;
    struct reader from;
    size_t i;
    int result = check_session(session, error);

    if (stopped == NULL)
        stopped = &unused;
    memset(stopped, 0, sizeof *stopped);
    if (result < 0)
        return result;
    if (count > PORTREEVE_MAX_LISTENERS)
        return fail(error, E2BIG, "Send requests with fewer items", "a request has at most %d listeners",
                    PORTREEVE_MAX_LISTENERS);
    to = body_of(session);
    put_u64(&to, count);
    for (i = 0; i < count; i++)
        put_u64(&to, ids[i]);
    result = call(session, OP_STOP, &to, &reply, error);
    if (result < 0)
        return result;
    from = body(&reply);
    get_stopped(&from, stopped->unknown, &stopped->unknown_count, ids, count);
    get_stopped(&from, stopped->not_revoked, &stopped->not_revoked_count, ids, count);
    if (!is_whole(&from, &reply)) {
        memset(stopped, 0, sizeof *stopped);
        return invalid_reply(session, &reply, error);
    }
    if (stopped->unknown_count > 0)
        return fail(error, ENOENT, "Stop each listener once, in the session that requested it",
                    "%zu of the listeners to stop are not listeners of this peer, the first is %llu", stopped->unknown_count,
                    (unsigned long long)stopped->unknown[0]);
    return 0;
}

static void copy_name(char *to, size_t size, const char **names) {
    size_t length = *names == NULL ? 0 : strcspn(*names, ":");

    snprintf(to, size, "%.*s", length < size ? (int)length : (int)size - 1, length > 0 ? *names : "");
    if (length == 0)
        copy_plain(to, size, "unknown");
    if (*names != NULL)
        *names += length + ((*names)[length] == ':');
}

int portreeve_inherited_listeners(struct portreeve_inherited_listener *listeners, size_t room, size_t *count,
                                  struct portreeve_error *error) {
    static const char *const REMEDY = "The broker or the service manager sets these variables when it starts this program";
    const char *process = getenv("LISTEN_PID"), *listen_fds = getenv("LISTEN_FDS"), *names = getenv("LISTEN_FDNAMES");
    long pid, number, i;
    int flags;

    *count = 0;
    if (process == NULL || listen_fds == NULL)
        return 0;
    pid = parse_number(process, INT_MAX);
    number = parse_number(listen_fds, 65535);
    if (pid < 0 || (number < 0 && pid == getpid()))
        return fail(error, EINVAL, REMEDY, "LISTEN_PID or LISTEN_FDS is not a number");
    if (pid != getpid())
        return 0;
    if ((unsigned long)number > room)
        return fail(error, E2BIG, "", "LISTEN_FDS passes %ld sockets, and this program takes at most %zu", number, room);
    for (i = 0; i < number; i++)
        if (fcntl(FIRST_INHERITED + (int)i, F_GETFD) < 0)
            return fail(error, EBADF, REMEDY, "descriptor %ld of LISTEN_FDS is not open", FIRST_INHERITED + i);
    for (i = 0; i < number; i++) {
        listeners[i].socket = FIRST_INHERITED + (int)i;
        flags = fcntl(listeners[i].socket, F_GETFD);
        (void)fcntl(listeners[i].socket, F_SETFD, flags | FD_CLOEXEC); /* it is open, so this cannot fail */
        copy_name(listeners[i].name, sizeof listeners[i].name, &names);
    }
    *count = (size_t)number;
    return 0;
}

/* ---- Addresses ---- */

static int put_address(struct writer *to, const char *address, struct portreeve_error *error) {
    if (address == NULL)
        return fail(error, EINVAL, "", "an address is NULL");
    if (!put_parsed_address(to, strchr(address, ':') == NULL ? AF_INET : AF_INET6, address))
        return fail(error, EINVAL, "Write an IPv4 or IPv6 address, without prefix length and interface",
                    "\"%.64s\" is not an address", address);
    return 0;
}

static int put_addresses(struct writer *to, const char *const *addresses, size_t count, struct portreeve_error *error) {
    size_t i;
    int result = 0;

    if (count > PORTREEVE_MAX_ADDRESSES)
        return fail(error, E2BIG, "Send requests with fewer items", "a request has at most %d addresses",
                    PORTREEVE_MAX_ADDRESSES);
    put_u64(to, count);
    for (i = 0; i < count && result == 0; i++)
        result = put_address(to, addresses[i], error);
    return result;
}

static void put_until(struct writer *to, const struct portreeve_lease_options *options) {
    if (options->present & PORTREEVE_HAS_UNTIL) {
        put_u8(to, 1);
        put_u64(to, options->until);
    }
}

static int check_lease_options(const struct portreeve_lease_options *options, struct portreeve_error *error) {
    if ((options->present & PORTREEVE_HAS_LEASE) && (options->present & PORTREEVE_HAS_UNTIL))
        return fail(error, EINVAL, "Give the length of the lease or its end",
                    "the options of an address have both the length and the end of its lease");
    if (options->probes > 3)
        return fail(error, EINVAL, "", "an address has at most 3 probes, and the options have %u", options->probes);
    return 0;
}

static void get_lease(struct reader *from, struct portreeve_lease *lease) {
    memset(lease, 0, sizeof *lease);
    get_address(from, lease->address);
    get_text(from, lease->interface, sizeof lease->interface);
    lease->prefix = get_u8(from);
    lease->remaining_ms = get_u64(from);
    lease->epoch = get_u64(from);
    get_option_address(from, lease->follows);
}

/* Decodes a `LeaseTimes` of `count` deadlines, and stores the first ones. `stride` is the distance between two leases. */
static void get_times(struct reader *from, struct portreeve_lease *first, size_t stored, size_t stride, size_t count) {
    uint64_t deadline;
    size_t i;

    (void)get_u64(from); /* the time of the reply */
    if (get_count(from, PORTREEVE_MAX_ADDRESSES) != count) {
        from->bad = true;
        return;
    }
    for (i = 0; i < count && !from->bad; i++) {
        deadline = get_u64(from);
        if (i < stored)
            ((struct portreeve_lease *)(void *)((char *)first + i * stride))->deadline = deadline;
    }
}

/* Whether a field of type trailing(T) is present. */
static bool has_trailing(struct reader *from) {
    if (from->bad || from->left == 0)
        return false;
    if (get_u8(from) != 1)
        from->bad = true;
    return !from->bad;
}

/* The outcome of a request for several addresses. */
struct outcome {
    size_t count;
    size_t stored;
    struct portreeve_error first; /* the error of the first address that failed */
};

static void get_leases(struct reader *from, struct portreeve_lease *results, size_t room, struct outcome *outcome) {
    struct portreeve_lease unused, *lease;
    uint32_t tag;
    size_t i;

    memset(outcome, 0, sizeof *outcome);
    outcome->count = get_count(from, PORTREEVE_MAX_ADDRESSES);
    outcome->stored = outcome->count < room ? outcome->count : room;
    for (i = 0; i < outcome->count && !from->bad; i++) {
        lease = i < room ? &results[i] : &unused;
        tag = get_u32(from);
        memset(lease, 0, sizeof *lease);
        if (tag == 0)
            get_lease(from, lease);
        else if (tag == 1)
            get_fault(from, &lease->error);
        else
            from->bad = true;
        if (outcome->first.number == 0 && lease->error.number != 0)
            outcome->first = lease->error;
    }
    if (has_trailing(from))
        get_times(from, results, outcome->stored, sizeof *results, outcome->count);
}

/* Reports the outcome of a request for `requested` addresses. */
static int finish_addresses(struct portreeve *session, struct frame *reply, const struct reader *from, size_t requested,
                            const struct outcome *outcome, size_t *found, struct portreeve_error *error) {
    if (!is_whole(from, reply) || outcome->count < requested)
        return invalid_reply(session, reply, error);
    if (found != NULL)
        *found = outcome->count;
    return outcome->first.number != 0 ? fail_with(error, &outcome->first) : 0;
}

static int call_for_leases(struct portreeve *session, unsigned operation, const struct writer *to, size_t requested,
                           struct portreeve_lease *results, size_t room, size_t *found, struct portreeve_error *error) {
    struct outcome outcome;
    struct frame reply;
    struct reader from;
    int result = call(session, operation, to, &reply, error);

    if (result < 0)
        return result;
    from = body(&reply);
    get_leases(&from, results, room, &outcome);
    return finish_addresses(session, &reply, &from, requested, &outcome, found, error);
}

static int begin_addresses(struct portreeve *session, struct writer *to, const char *const *addresses, size_t count,
                           size_t *found, struct portreeve_error *error) {
    int result = check_session(session, error);

    if (found != NULL)
        *found = 0;
    if (result < 0)
        return result;
    *to = body_of(session);
    return put_addresses(to, addresses, count, error);
}

static const struct portreeve_lease_options DEFAULT_LEASE = PORTREEVE_LEASE_OPTIONS;

int portreeve_add_addresses(struct portreeve *session, const char *const *addresses, size_t count,
                            const struct portreeve_lease_options *options, struct portreeve_lease *results, size_t room,
                            size_t *found, struct portreeve_error *error) {
    struct writer to;
    int result = begin_addresses(session, &to, addresses, count, found, error);

    if (options == NULL)
        options = &DEFAULT_LEASE;
    if (result == 0)
        result = check_lease_options(options, error);
    if (result < 0)
        return result;
    put_option_u32(&to, options->present & PORTREEVE_HAS_LEASE, options->lease);
    put_u64(&to, options->epoch);
    put_u8(&to, options->probes);
    put_u8(&to, options->announce);
    put_until(&to, options);
    return call_for_leases(session, OP_ADD_ADDRESS, &to, count, results, room, found, error);
}

int portreeve_renew_addresses(struct portreeve *session, const char *const *addresses, size_t count,
                              const struct portreeve_lease_options *options, struct portreeve_lease *results, size_t room,
                              size_t *found, struct portreeve_error *error) {
    struct writer to;
    int result = begin_addresses(session, &to, addresses, count, found, error);

    if (options == NULL)
        options = &DEFAULT_LEASE;
    if (result == 0)
        result = check_lease_options(options, error);
    if (result < 0)
        return result;
    put_option_u32(&to, options->present & PORTREEVE_HAS_LEASE, options->lease);
    put_u64(&to, options->epoch);
    put_until(&to, options);
    return call_for_leases(session, OP_RENEW_ADDRESS, &to, count, results, room, found, error);
}

int portreeve_announce_addresses(struct portreeve *session, const char *const *addresses, size_t count, uint64_t epoch,
                                 struct portreeve_lease *results, size_t room, size_t *found,
                                 struct portreeve_error *error) {
    struct writer to;
    int result = begin_addresses(session, &to, addresses, count, found, error);

    if (result < 0)
        return result;
    put_u64(&to, epoch);
    return call_for_leases(session, OP_ANNOUNCE, &to, count, results, room, found, error);
}

int portreeve_move_addresses(struct portreeve *session, const char *const *addresses, size_t count,
                             const char *interface, uint64_t epoch, bool announce, struct portreeve_lease *results,
                             size_t room, size_t *found, struct portreeve_error *error) {
    struct writer to;
    int result = begin_addresses(session, &to, addresses, count, found, error);

    if (result < 0)
        return result;
    if (interface == NULL || !is_interface(interface))
        return fail(error, EINVAL, "", "\"%.64s\" is not the name of an interface", interface == NULL ? "" : interface);
    put_text(&to, interface, strlen(interface));
    put_u64(&to, epoch);
    put_u8(&to, announce);
    return call_for_leases(session, OP_MOVE_ADDRESS, &to, count, results, room, found, error);
}

static void get_removals(struct reader *from, struct portreeve_removal *results, size_t room, struct outcome *outcome) {
    struct portreeve_removal unused, *removal;
    uint32_t tag;
    size_t i;

    memset(outcome, 0, sizeof *outcome);
    outcome->count = get_count(from, PORTREEVE_MAX_ADDRESSES);
    for (i = 0; i < outcome->count && !from->bad; i++) {
        removal = i < room ? &results[i] : &unused;
        tag = get_u32(from);
        memset(removal, 0, sizeof *removal);
        if (tag == 0) {
            get_address(from, removal->address);
            removal->verified = get_bool(from);
        } else if (tag == 1) {
            get_fault(from, &removal->error);
        } else {
            from->bad = true;
        }
        if (outcome->first.number == 0 && removal->error.number != 0)
            outcome->first = removal->error;
    }
}

int portreeve_remove_addresses(struct portreeve *session, const char *const *addresses, size_t count, uint64_t epoch,
                               struct portreeve_removal *results, size_t room, size_t *found,
                               struct portreeve_error *error) {
    struct outcome outcome;
    struct writer to;
    struct frame reply;
    struct reader from;
    int result = begin_addresses(session, &to, addresses, count, found, error);

    if (result < 0)
        return result;
    put_u64(&to, epoch);
    result = call(session, OP_REMOVE_ADDRESS, &to, &reply, error);
    if (result < 0)
        return result;
    from = body(&reply);
    get_removals(&from, results, room, &outcome);
    return finish_addresses(session, &reply, &from, count, &outcome, found, error);
}

int portreeve_renew_all(struct portreeve *session, const struct portreeve_lease_options *options,
                        struct portreeve_renewal *renewal, struct portreeve_error *error) {
    struct portreeve_renewal unused;
    struct writer to;
    struct frame reply;
    struct reader from;
    int result = check_session(session, error);

    if (options == NULL)
        options = &DEFAULT_LEASE;
    if (renewal == NULL)
        renewal = &unused;
    memset(renewal, 0, sizeof *renewal);
    if (result == 0)
        result = check_lease_options(options, error);
    if (result < 0)
        return result;
    to = body_of(session);
    put_option_u32(&to, options->present & PORTREEVE_HAS_LEASE, options->lease);
    put_u8(&to, (options->present & PORTREEVE_HAS_UNTIL) != 0);
    if (options->present & PORTREEVE_HAS_UNTIL)
        put_u64(&to, options->until);
    result = call(session, OP_RENEW_ALL, &to, &reply, error);
    if (result < 0)
        return result;
    from = body(&reply);
    renewal->now = get_u64(&from);
    renewal->deadline = get_u64(&from);
    renewal->renewed = get_u32(&from);
    renewal->not_renewed = get_u32(&from);
    renewal->ipv4_fenced = get_bool(&from);
    renewal->ipv6_fenced = get_bool(&from);
    if (!is_whole(&from, &reply)) {
        memset(renewal, 0, sizeof *renewal);
        return invalid_reply(session, &reply, error);
    }
    return 0;
}

static void get_page(struct reader *from, struct portreeve_address_row *rows, size_t room, size_t *stored, bool *more) {
    struct portreeve_address_row unused, *row;
    size_t count, i;
    bool fenced;

    fenced = get_bool(from);
    (void)fenced; /* the field `bounds` is more exact, and portreeve_renew_all returns it */
    count = get_count(from, PORTREEVE_MAX_ROWS);
    *stored = count < room ? count : room;
    for (i = 0; i < count && !from->bad; i++) {
        row = i < room ? &rows[i] : &unused;
        memset(row, 0, sizeof *row);
        get_lease(from, &row->lease);
        get_text(from, row->holder, sizeof row->holder);
        row->present = get_bool(from);
    }
    *more = get_bool(from) || count > room;
    if (has_trailing(from)) {
        get_times(from, &rows[0].lease, *stored, sizeof rows[0], count);
        (void)get_bool(from);
        (void)get_bool(from);
    }
}

int portreeve_list_addresses(struct portreeve *session, const char *after, struct portreeve_address_row *rows, size_t room,
                             size_t *found, bool *more, struct portreeve_error *error) {
    struct writer to;
    struct frame reply;
    struct reader from;
    int result = check_session(session, error);

    *found = 0;
    *more = false;
    if (result < 0)
        return result;
    if (room == 0)
        return fail(error, EINVAL, "", "there is no room for an address");
    to = body_of(session);
    put_u8(&to, after != NULL);
    if (after != NULL)
        result = put_address(&to, after, error);
    if (result == 0)
        result = call(session, OP_LIST_ADDRESSES, &to, &reply, error);
    if (result < 0)
        return result;
    from = body(&reply);
    get_page(&from, rows, room, found, more);
    if (!is_whole(&from, &reply) || (*more && *found == 0)) {
        *found = 0;
        *more = false;
        return invalid_reply(session, &reply, error);
    }
    return 0;
}

/* ---- Events ---- */

/* Decodes the recent events, and stores the last `room` of them. */
static void get_recent(struct reader *from, struct portreeve_event *recent, size_t room, size_t *stored) {
    struct portreeve_event event;
    size_t count, skipped, i;

    (void)get_bool(from); /* whether events of others are included */
    count = get_count(from, PORTREEVE_MAX_RECENT);
    skipped = count > room ? count - room : 0;
    for (i = 0; i < count && !from->bad; i++) {
        get_event(from, &event);
        if (i >= skipped)
            recent[i - skipped] = event;
    }
    *stored = count - skipped;
}

static int subscribe(struct portreeve *session, bool follow, bool all, struct portreeve_event *recent, size_t room,
                     size_t *found, struct portreeve_error *error) {
    struct writer to;
    struct frame reply;
    struct reader from;
    size_t unused;
    int result = check_session(session, error);

    if (found == NULL)
        found = &unused;
    *found = 0;
    if (result < 0)
        return result;
    to = body_of(session);
    put_u8(&to, follow);
    put_u8(&to, all);
    result = call(session, OP_SUBSCRIBE, &to, &reply, error);
    if (result < 0)
        return result;
    from = body(&reply);
    get_recent(&from, recent, room, found);
    if (!is_whole(&from, &reply)) {
        *found = 0;
        return invalid_reply(session, &reply, error);
    }
    return 0;
}

int portreeve_subscribe(struct portreeve *session, bool all, struct portreeve_event *recent, size_t room, size_t *found,
                        struct portreeve_error *error) {
    return subscribe(session, true, all, recent, room, found, error);
}

int portreeve_unsubscribe(struct portreeve *session, struct portreeve_error *error) {
    return subscribe(session, false, false, NULL, 0, NULL, error);
}

int portreeve_next_event(struct portreeve *session, struct portreeve_event *event, int timeout,
                         struct portreeve_error *error) {
    int64_t deadline = deadline_after(timeout);
    struct frame frame;
    int result = check_session(session, error);

    if (result < 0)
        return result;
    for (;;) {
        if (session->queue_count == 0 && session->missed > 0)
            queue_gap(session);
        if (session->queue_count > 0) {
            *event = session->queue[session->queue_first];
            session->queue_first = (session->queue_first + 1) % QUEUE_LENGTH;
            session->queue_count--;
            return 1;
        }
        if (session->end.number != 0)
            return fail_with(error, &session->end);
        result = receive_now(session, &frame);
        if (result == 0 && wait_for(session->channel, POLLIN, deadline) == 0)
            return 0;
        if (result > 0)
            (void)take_unexpected(session, &frame); /* the end of the session is reported above */
        if (result > 0 && session->queue_count == 0 && session->end.number == 0 && remaining(deadline) == 0)
            return 0; /* also while replies of earlier requests arrive without end */
    }
}

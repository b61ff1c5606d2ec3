package portreeve

import "context"

// maxQueuedEvents is the number of events that a program can leave untaken. A gap takes the place of those that do not fit.
const maxQueuedEvents = 256

// subscribers are the parts of this program that receive the events of a session, which has one subscription. Client.mutex guards
// it.
type subscribers struct {
	// all tells of each one whether it includes events of other peers.
	all map[*queue]bool
}

func (s *subscribers) add(q *queue, all bool) subscribe {
	if s.all == nil {
		s.all = map[*queue]bool{}
	}
	s.all[q] = all
	return s.required()
}

// remove returns whether the queue was subscribed, and the request that serves the others.
func (s *subscribers) remove(q *queue) (subscribe, bool) {
	_, found := s.all[q]
	delete(s.all, q)
	return s.required(), found
}

func (s *subscribers) required() subscribe {
	required := subscribe{Follow: len(s.all) > 0}
	for _, all := range s.all {
		required.All = required.All || all
	}
	return required
}

func (s *subscribers) deliver(event Event) {
	for q := range s.all {
		q.push(event)
	}
}

// A queue has the events that a subscriber has not taken. Client.mutex guards it.
type queue struct {
	events []Event
	lost   uint64
	// seen is the number of the last event in the reply to the subscription.
	seen uint64
	// arrived has a value after an event has arrived.
	arrived chan struct{}
}

func newQueue() *queue { return &queue{arrived: make(chan struct{}, 1)} }

func (q *queue) push(event Event) {
	switch {
	case event.Number > 0 && event.Number <= q.seen:
		return
	case q.lost == 0 && len(q.events) < maxQueuedEvents:
		q.events = append(q.events, event)
	case event.Code == Gap:
		q.lost += event.Count
	default:
		q.lost++
	}
	select {
	case q.arrived <- struct{}{}:
	default:
	}
}

func (q *queue) pop() (Event, bool) {
	if len(q.events) > 0 {
		event := q.events[0]
		q.events = q.events[1:]
		return event, true
	}
	lost := q.lost
	q.lost = 0
	return Event{Code: Gap, Count: lost}, lost > 0
}

// Events are the events of a subscription.
type Events struct {
	client *Client
	queue  *queue
	// Recent are the events before the subscription, the oldest first.
	Recent []Event
	// IncludesAll tells whether events that concern other peers are included.
	IncludesAll bool
}

// Subscribe subscribes to events. With all, those that concern other peers are included, if this peer is allowed "status".
func (c *Client) Subscribe(ctx context.Context, all bool) (*Events, error) {
	queue := newQueue()
	reply, err := c.subscribe(ctx, queue, all)
	if err != nil {
		return nil, err
	}
	return &Events{client: c, queue: queue, Recent: reply.Recent, IncludesAll: reply.All}, nil
}

func (c *Client) subscribe(ctx context.Context, q *queue, all bool) (subscribed, error) {
	c.mutex.Lock()
	request := c.subscribers.add(q, all)
	c.mutex.Unlock()
	var reply subscribed
	err := c.call(ctx, kindSubscribe, request, &reply)
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if err != nil {
		c.subscribers.remove(q)
		return reply, err
	}
	if len(reply.Recent) > 0 {
		q.seen = reply.Recent[len(reply.Recent)-1].Number
	}
	// Those that arrived before the reply and are in it.
	queued := q.events
	q.events = nil
	for _, event := range queued {
		q.push(event)
	}
	return reply, nil
}

// Next waits for an event.
func (e *Events) Next(ctx context.Context) (Event, error) {
	for {
		e.client.mutex.Lock()
		event, ok := e.queue.pop()
		ended := e.client.ended
		e.client.mutex.Unlock()
		if ok {
			return event, nil
		}
		if ended != nil {
			return Event{}, ended
		}
		select {
		case <-e.queue.arrived:
		case <-e.client.done:
		case <-ctx.Done():
			return Event{}, ctx.Err()
		}
	}
}

// Close ends the subscription.
func (e *Events) Close(ctx context.Context) error {
	e.client.mutex.Lock()
	request, found := e.client.subscribers.remove(e.queue)
	e.client.mutex.Unlock()
	if !found {
		return nil
	}
	return e.client.call(ctx, kindSubscribe, request, &subscribed{})
}

// forget ends a subscription without a request: further events are ignored.
func (c *Client) forget(q *queue) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.subscribers.remove(q)
}

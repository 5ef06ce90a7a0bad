from station.outbox import Outbox, Parcel


def parcel(size: int, content_type: str = "application/json") -> Parcel:
    return Parcel("t", bytes(size), 1, (), content_type=content_type)


def test_first_in_first_out_and_nothing_leaves_before_it_is_done() -> None:
    outbox = Outbox()
    a, b = parcel(1), parcel(1)  # equal, but two
    outbox.put(a)
    outbox.put(b)
    assert outbox.first() is a
    assert outbox.first() is a
    outbox.done(a)
    outbox.done(a)
    assert outbox.first() is b
    assert len(outbox) == 1
    outbox.done(b)
    assert outbox.first() is None


def test_when_full_pictures_go_before_alerts_and_the_oldest_first() -> None:
    outbox = Outbox(max_bytes=100)
    old, picture, new = parcel(30), parcel(60, "image/jpeg"), parcel(30)
    for held in (old, picture, new):
        outbox.put(held)
    assert outbox.dropped == 1
    assert outbox.first() is old
    outbox.put(parcel(50))
    assert outbox.dropped == 2
    assert outbox.first() is new
    outbox.done(picture)  # what was dropped meanwhile may still be reported as done
    assert len(outbox) == 2


def test_the_room_of_what_is_done_is_free_again() -> None:
    outbox = Outbox(max_bytes=100)
    for _ in range(50):
        held = parcel(60)
        outbox.put(held)
        outbox.done(held)
    assert outbox.dropped == 0

//! A copy that ends when the configuration no longer sends there.

use std::{
    future::poll_fn,
    task::{Context, Poll},
    time::Duration,
};

use super::copy::{CopyEnd, Side, copy};
use crate::{
    clock::{self, MonoNanos},
    proxy::{flows::Watch, io::poll_fill, timer::Timer},
};

/// Copies as [`copy`] does, but no longer than `watch` allows. Then both sides are told the end;
/// who has not closed within the grace is reset, and so are both when there is none.
pub(in crate::proxy) async fn follow(
    mut down: Side<'_>,
    mut up: Side<'_>,
    timer: &mut Timer,
    idle: Duration,
    bytes: &mut (u64, u64),
    watch: &mut Watch,
) -> CopyEnd {
    let end = {
        // Boxed: rare, and large beside a copy that nobody watches.
        let mut copying = Box::pin(copy(down.again(), up.again(), timer, idle, bytes));
        poll_fn(|cx| match copying.as_mut().poll(cx) {
            Poll::Ready(end) => Poll::Ready(Some(end)),
            Poll::Pending => watch.poll(cx).map(|()| None),
        })
        .await
        // A copy that is cut short makes both sockets close with a reset.
    };
    let Some(end) = end else {
        let grace = watch.grace();
        if !grace.is_zero() {
            part(&mut down, &mut up, timer, clock::now().after(grace)).await;
        }
        return CopyEnd::Changed;
    };
    end
}

/// Tells both sides the end and reads what they still send, until both have ended too.
async fn part(down: &mut Side<'_>, up: &mut Side<'_>, timer: &mut Timer, until: MonoNanos) {
    down.stream.shut_write();
    up.stream.shut_write();
    let (mut down_ended, mut up_ended) = (false, false);
    poll_fn(|cx| {
        down_ended = down_ended || has_ended(down, cx);
        up_ended = up_ended || has_ended(up, cx);
        if down_ended && up_ended {
            return Poll::Ready(());
        }
        timer.poll(cx, until)
    })
    .await;
}

fn has_ended(side: &mut Side<'_>, cx: &mut Context<'_>) -> bool {
    loop {
        side.buf.release();
        match poll_fill(side.stream, cx, side.buf) {
            Poll::Pending => return false,
            Poll::Ready(Ok(0) | Err(_)) => return true,
            Poll::Ready(Ok(count)) => side.buf.consume(count),
        }
    }
}

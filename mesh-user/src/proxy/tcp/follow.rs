//! A copy that ends when the configuration no longer sends there.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

use super::copy::{CopyEnd, Side, copy};
use crate::{
    clock::{self, MonoNanos},
    proxy::{flows::Watch, io::poll_fill, timer::Timer},
};

/// Copies, and follows changes where there is a watch. One future for both, so that who awaits it
/// has room for one of them only.
pub(in crate::proxy) async fn carry(
    down: Side<'_>,
    up: Side<'_>,
    timer: &mut Timer,
    idle: Duration,
    bytes: &mut (u64, u64),
    watch: Option<Box<Watch>>,
) -> CopyEnd {
    match watch {
        None => copy(down, up, timer, idle, bytes).await,
        Some(watch) => follow(down, up, timer, idle, bytes, watch).await,
    }
}

/// See [`run`]. Boxed in here: rare, and large beside the state of a copy that nobody watches.
fn follow<'a>(
    down: Side<'a>,
    up: Side<'a>,
    timer: &'a mut Timer,
    idle: Duration,
    bytes: &'a mut (u64, u64),
    watch: Box<Watch>,
) -> Pin<Box<dyn Future<Output = CopyEnd> + 'a>> {
    Box::pin(run(down, up, timer, idle, bytes, watch))
}

/// Copies as [`copy`] does, but no longer than `watch` allows. Then both sides are told the end;
/// who has not closed within the grace is reset, and so are both when there is none.
async fn run(
    mut down: Side<'_>,
    mut up: Side<'_>,
    timer: &mut Timer,
    idle: Duration,
    bytes: &mut (u64, u64),
    mut watch: Box<Watch>,
) -> CopyEnd {
    let end = {
        let mut copying = pin!(copy(down.again(), up.again(), timer, idle, bytes));
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

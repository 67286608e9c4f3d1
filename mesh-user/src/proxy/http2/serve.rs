//! To come.
use std::rc::Rc;
use tokio::net::TcpStream;
use crate::proxy::{buffer::Buf, core::{Conn, Place}, timer::Timer};
use crate::policy::Reject;
pub(in crate::proxy) async fn serve(conn: Rc<Conn>, _place: Place, stream: TcpStream, _buf: Buf, _timer: Timer) {
    crate::proxy::connection::refuse(conn, &stream, Reject::UnknownVersion);
}

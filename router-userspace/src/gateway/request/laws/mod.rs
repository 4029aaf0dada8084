//! Laws of the requests of clients: [`head`] and [`coding`].

mod coding;
mod head;

pub use coding::coding;
pub use head::head;

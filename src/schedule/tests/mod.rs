mod firing;
mod house;
mod turns;

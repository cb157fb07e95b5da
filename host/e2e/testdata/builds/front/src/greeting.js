export const greeting = "hello from the front";
